_base_ = './rmt-tiny_8xb128_in1k.py'

# In no release. DeiT-S ends in a LayerNorm and a Linear layer. The tokens are averaged, since RMT has no class token.
model = dict(
    backbone=dict(arch='deit-small', out_indices=None, out_norm=True),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        _delete_=True,
        type='LinearClsHead',
        num_classes=1000,
        in_channels=384,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
)
