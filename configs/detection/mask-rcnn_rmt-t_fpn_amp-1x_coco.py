_base_ = [
    '../_base_/models/mask-rcnn_rmt_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/det_1x.py',
    '../_base_/det_runtime.py',
]
