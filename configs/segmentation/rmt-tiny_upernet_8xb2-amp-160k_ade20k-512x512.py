# The authors released no UperNet config for T: this is the recipe of the three larger sizes.
_base_ = [
    '../_base_/models/upernet_rmt.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/seg_upernet_160k.py',
    '../_base_/seg_runtime.py',
]
