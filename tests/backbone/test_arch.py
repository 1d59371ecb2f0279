"""Presets, and the check of a custom size."""

import pytest

from rmt_mm.arch import ARCHS, Arch, resolve_arch, short_name

from support.archs import SMALL_ARCH


@pytest.mark.parametrize('name', ARCHS)
def test_presets_by_name_and_letter(name):
    assert resolve_arch(name) == resolve_arch(short_name(name)) == resolve_arch(name.upper()) == ARCHS[name]


@pytest.mark.parametrize(
    'name, blocks, channels, heads, ffn, decay, decomposed, layer_scale',
    [
        ('tiny', (2, 2, 8, 2), (64, 128, 256, 512), (4, 4, 8, 16), (3, 3, 3, 3), (4, 4, 6, 6), 2, 0),
        ('small', (3, 4, 18, 4), (64, 128, 256, 512), (4, 4, 8, 16), (4, 4, 3, 3), (4, 4, 6, 6), 3, 0),
        ('base', (4, 8, 25, 8), (80, 160, 320, 512), (5, 5, 10, 16), (4, 4, 3, 3), (5, 5, 6, 6), 3, 2),
        ('large', (4, 8, 25, 8), (112, 224, 448, 640), (7, 7, 14, 20), (4, 4, 3, 3), (6, 6, 6, 6), 3, 2),
    ],
)
def test_presets_are_the_published_sizes(name, blocks, channels, heads, ffn, decay, decomposed, layer_scale):
    """No golden output and no shape depends on L's decay: no other test would find a wrong one."""
    arch = ARCHS[name]
    assert (arch.depths, arch.embed_dims, arch.num_heads, arch.mlp_ratios) == (blocks, channels, heads, ffn)
    assert (arch.init_values, arch.heads_ranges) == ((2, 2, 2, 2), decay)
    assert arch.decomposed == tuple(stage < decomposed for stage in range(4))  # the first stages
    assert arch.layer_scales == tuple(stage >= 4 - layer_scale for stage in range(4))  # the last


def test_tiny_decomposes_two_stages_and_the_others_three():
    decomposed = {name: sum(ARCHS[name].decomposed) for name in ('tiny', 'small', 'base', 'large')}
    assert decomposed == dict(tiny=2, small=3, base=3, large=3)


def test_own_size():
    assert resolve_arch(SMALL_ARCH)._asdict() == {**Arch._field_defaults, **SMALL_ARCH}


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(embed_dim=3), ['unknown', 'embed_dim', 'embed_dims']),
        (dict(depths=(1, 2)), ['depths', '4 values', '(1, 2)']),
        (dict(depths=(1, 0, 1, 1)), ['depths', 'positive', '0']),
        (dict(num_heads=(3, 2, 4, 4)), ['3 heads', '16 channels', 'stage 0']),
        (dict(embed_dims=(16, 22, 32, 48)), ['22 / 2 = 11', 'even', 'stage 1']),
        (dict(embed_dims=(15, 24, 32, 48), num_heads=(5, 2, 4, 4)), ['15 / 5 = 3', 'even']),
        (dict(init_values=(0, 2, 2, 2)), ['init_values', '> 0']),
    ],
)
def test_wrong_sizes_are_named(change, words):
    with pytest.raises(ValueError) as error:
        resolve_arch({**SMALL_ARCH, **change})
    assert all(word in str(error.value) for word in words), error.value


def test_missing_keys_are_named():
    with pytest.raises(ValueError, match='missing: mlp_ratios'):
        resolve_arch({key: value for key, value in SMALL_ARCH.items() if key != 'mlp_ratios'})


def test_unknown_name_lists_the_presets():
    with pytest.raises(ValueError, match="'huge'.*tiny, small, base, large"):
        resolve_arch('huge')


def test_wrong_type():
    with pytest.raises(TypeError, match='str or a dict, got int'):
        resolve_arch(3)
