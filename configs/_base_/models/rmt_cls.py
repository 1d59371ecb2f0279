norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=1000, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
    backbone=dict(type='RMT', arch='tiny', drop_path_rate=0.1, out_indices=(3,), out_norm=False, norm_cfg=norm_cfg),
    head=dict(
        type='RMTClsHead',
        num_classes=1000,
        in_channels=512,
        norm_cfg=norm_cfg,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    # One of the two for every batch, each with probability 0.5.
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
