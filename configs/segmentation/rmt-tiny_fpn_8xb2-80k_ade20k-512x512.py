_base_ = [
    '../_base_/models/fpn_rmt.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/seg_fpn_80k.py',
    '../_base_/seg_runtime.py',
]
