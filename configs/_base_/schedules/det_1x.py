train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# 500 iterations of warm-up: mmengine reaches the full rate at `end - 1`, mmcv 1 (the published schedule) at 500.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=501),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-4, betas=(0.9, 0.999), weight_decay=0.05),
    # Match 'norm' in the parameters' names, as the released recipe does. The stem's norms lack it, and are decayed.
    paramwise_cfg=dict(custom_keys={'norm': dict(decay_mult=0.0)}),
)

# 8 GPUs with 2 images each
auto_scale_lr = dict(enable=False, base_batch_size=16)
