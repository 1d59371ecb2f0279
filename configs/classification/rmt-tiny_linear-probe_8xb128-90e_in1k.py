# A linear classifier on the frozen, averaged output of the last stage. To choose another checkpoint:
# --cfg-options model.backbone.init_cfg.checkpoint=PATH
_base_ = './rmt-tiny_8xb128_in1k.py'

model = dict(
    backbone=dict(
        frozen_stages=4,
        drop_path_rate=0.0,
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/rmt-tiny_8xb128_in1k/epoch_300.pth', prefix='backbone.'),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        _delete_=True,
        type='LinearClsHead',
        num_classes=1000,
        in_channels=512,
        loss=dict(type='CrossEntropyLoss'),
        cal_acc=True,
    ),
    train_cfg=None,
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True), dataset=dict(pipeline=train_pipeline)
)

train_cfg = dict(max_epochs=90)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=0.1, momentum=0.9, weight_decay=0.0), paramwise_cfg=None
)
param_scheduler = [dict(type='CosineAnnealingLR', T_max=90, by_epoch=True, begin=0, end=90, convert_to_iter_based=True)]
custom_hooks = [dict(type='DataCheckHook')]
