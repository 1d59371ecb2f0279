# mmdet's ResNet-18 from random weights, with the schedule and data of the RMT demo, for comparison.
_base_ = './mask-rcnn_rmt-mini_fpn_digits.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=18,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='BN'),
        norm_eval=False,
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
