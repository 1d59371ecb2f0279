_base_ = [
    '../_base_/models/retinanet_rmt_fpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/det_1x.py',
    '../_base_/det_runtime.py',
]

# Weight decay 1e-4 for every parameter, norms included
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4), paramwise_cfg=dict(_delete_=True))
