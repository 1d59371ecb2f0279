_base_ = [
    '../_base_/models/rmt_token-label.py',
    '../_base_/datasets/imagenet_token-label.py',
    '../_base_/schedules/cls_310e.py',
    '../_base_/cls_runtime.py',
]
