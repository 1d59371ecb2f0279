train_cfg = dict(type='IterBasedTrainLoop', max_iters=80000, val_interval=8000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# `end` is one more than max_iters: mmengine reaches eta_min at `end - 1`, mmcv 1 (the published schedule) at max_iters.
param_scheduler = [dict(type='PolyLR', eta_min=1e-6, power=0.9, begin=0, end=80001, by_epoch=False)]

optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4))

# 8 GPUs with 2 images each
auto_scale_lr = dict(enable=False, base_batch_size=16)
