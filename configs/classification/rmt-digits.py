# A classifier small enough for two CPU cores, trained from random weights on single digits in minutes. It has the
# backbone of configs/detection/mask-rcnn_rmt-mini_fpn_digits.py, which its checkpoint can initialise.
_base_ = [
    '../_base_/models/rmt_cls.py',
    '../_base_/models/rmt_mini.py',
    '../_base_/datasets/digits_cls.py',
    '../_base_/cls_runtime.py',
]

model = dict(
    data_preprocessor=dict(num_classes=10),
    backbone=dict(arch=_base_.mini, drop_path_rate=0.0),
    head=dict(num_classes=10, in_channels=192, hidden_channels=256),
    train_cfg=None,
)

train_cfg = dict(by_epoch=True, max_epochs=16, val_interval=2)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1.5e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=16, eta_min=1e-5, by_epoch=True, begin=0, end=16, convert_to_iter_based=True),
]
custom_hooks = [dict(type='DataCheckHook')]
auto_scale_lr = dict(base_batch_size=32)
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(max_keep_ckpts=2))
