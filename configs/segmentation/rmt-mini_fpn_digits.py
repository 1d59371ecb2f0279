# A Semantic FPN small enough for two CPU cores, trained from random weights on digit scenes in minutes.
_base_ = [
    '../_base_/models/fpn_rmt.py',
    '../_base_/models/rmt_mini.py',
    '../_base_/datasets/digits_semantic.py',
    '../_base_/seg_runtime.py',
]

model = dict(
    # Pad small images with background (0): with class weights, mmseg's loss does not accept ignored pixels.
    data_preprocessor=dict(size=(160, 160), seg_pad_val=0),
    backbone=dict(arch=_base_.mini, drop_path_rate=0.0),
    neck=dict(in_channels=[32, 64, 128, 192], out_channels=64),
    decode_head=dict(
        in_channels=[64, 64, 64, 64], channels=64, num_classes=11, loss_decode=dict(class_weight=[0.3] + [1.0] * 10)
    ),
)  # class_weight: six of seven pixels are background

train_cfg = dict(type='IterBasedTrainLoop', max_iters=5000, val_interval=500)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(custom_keys={'norm': dict(decay_mult=0.0)}),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='PolyLR', eta_min=1e-6, power=0.9, begin=100, end=5000, by_epoch=False),
]
auto_scale_lr = dict(enable=False, base_batch_size=8)
default_hooks = dict(checkpoint=dict(interval=500))
