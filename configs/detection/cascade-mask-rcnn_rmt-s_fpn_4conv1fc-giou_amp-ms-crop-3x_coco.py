_base_ = [
    '../_base_/models/cascade-mask-rcnn_rmt_fpn.py',
    '../_base_/datasets/coco_instance_ms-crop.py',
    '../_base_/schedules/det_3x.py',
    '../_base_/det_runtime.py',
]

model = dict(backbone=dict(arch='small', drop_path_rate=0.15))

# Beside the names with 'norm': every normalisation layer, those of stem and heads included.
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))
