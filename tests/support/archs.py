"""Small archs, for tests that do not depend on the size."""

# Every kind of stage: decomposed and full attention, with LayerScale and without, one block and two.
SMALL_ARCH = dict(
    embed_dims=(16, 24, 32, 48),
    depths=(1, 2, 2, 1),
    num_heads=(2, 2, 4, 4),
    init_values=(2, 2, 2, 2),
    heads_ranges=(4, 4, 6, 6),
    mlp_ratios=(3, 3, 3, 3),
    decomposed=(True, True, False, False),
    layer_scales=(False, False, False, True),
)

# For tests of heads: the smallest arch, with the channels that the tests' head takes.
LEAST_ARCH = {**SMALL_ARCH, 'embed_dims': (16, 16, 32, 32), 'depths': (1, 1, 1, 1)}
