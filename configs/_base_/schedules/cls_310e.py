_base_ = './cls_300e.py'

train_cfg = dict(max_epochs=310)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', T_max=310, eta_min=1e-5, by_epoch=True, begin=0, end=310, convert_to_iter_based=True
    ),
]
