_base_ = [
    '../_base_/models/rmt_cls.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/cls_300e.py',
    '../_base_/cls_runtime.py',
]
