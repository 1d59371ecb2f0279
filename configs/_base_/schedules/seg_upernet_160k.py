train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# The schedule of mmcv 1: the decay counts from iteration 0, and the warm-up of 1500 iterations multiplies it. mmengine
# reaches the last value of both at `end - 1`, mmcv 1 at the number of iterations: so `end` is one more.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1501),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=0, end=160001, by_epoch=False),
]

optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale=512.0,
    optimizer=dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    # Match 'norm' in the parameters' names, as the released recipe does. The stem's norms lack it, and are decayed.
    paramwise_cfg=dict(custom_keys={'norm': dict(decay_mult=0.0)}),
)

# 8 GPUs with 2 images each
auto_scale_lr = dict(enable=False, base_batch_size=16)
