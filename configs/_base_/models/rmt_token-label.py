# MakeTokenLabels smooths token labels, and TokenLabelClassifier mixes them: no label smoothing and no Mixup here.
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='TokenLabelClassifier',
    data_preprocessor=dict(num_classes=1000, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
    backbone=dict(type='RMT', arch='small', drop_path_rate=0.15, out_indices=(3,), out_norm=False, norm_cfg=norm_cfg),
    head=dict(
        type='RMTTokenLabelHead', num_classes=1000, in_channels=512, norm_cfg=norm_cfg, cls_weight=1.0, aux_weight=0.5
    ),
)
