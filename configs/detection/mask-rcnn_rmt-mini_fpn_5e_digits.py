# Half the schedule of the digit scenes, for a first result in minutes: `make demo`. `make demo-full` runs the whole.
_base_ = './mask-rcnn_rmt-mini_fpn_digits.py'

train_cfg = dict(max_epochs=5, val_interval=5)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', T_max=5, eta_min=1e-5, by_epoch=True, convert_to_iter_based=True),
]
