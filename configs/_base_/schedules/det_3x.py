_base_ = './det_1x.py'

train_cfg = dict(max_epochs=36)

# 500 iterations of warm-up: mmengine reaches the full rate at `end - 1`, mmcv 1 (the published schedule) at 500.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=501),
    dict(type='MultiStepLR', begin=0, end=36, by_epoch=True, milestones=[27, 33], gamma=0.1),
]
