train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()

# Learning rate: 5e-4 per 512 images.
optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)),
    # No weight decay on biases and 1-D parameters. LayerScale has four dimensions, and is decayed.
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)

# The cosine is counted from the first epoch, not from the end of the warm-up, as in the released logs.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', T_max=300, eta_min=1e-5, by_epoch=True, begin=0, end=300, convert_to_iter_based=True
    ),
]

custom_hooks = [
    dict(type='DataCheckHook'),
    # Published figures are the best of the raw and the averaged weights: both are evaluated.
    dict(
        type='BatchScaledEMAHook',
        decay=0.99996,
        base_batch_size=512,
        update_buffers=True,
        evaluate_on_ema=True,
        evaluate_on_origin=True,
        priority='ABOVE_NORMAL',
    ),
]

# 8 GPUs with 128 images each
auto_scale_lr = dict(enable=False, base_batch_size=1024)
