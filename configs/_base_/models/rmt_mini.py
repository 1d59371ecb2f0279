# A size of RMT for two CPU cores, 1.3 M parameters: arch=_base_.mini. (_delete_, because it replaces a str.)
mini = dict(
    _delete_=True,
    embed_dims=(32, 64, 128, 192),
    depths=(1, 1, 3, 1),
    num_heads=(2, 4, 4, 6),
    init_values=(2, 2, 2, 2),
    heads_ranges=(4, 4, 6, 6),
    mlp_ratios=(3, 3, 3, 3),
    decomposed=(True, True, True, False),
    layer_scales=(False, False, False, False),
)
