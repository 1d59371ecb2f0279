_base_ = [
    '../_base_/models/cascade-mask-rcnn_rmt_fpn.py',
    '../_base_/datasets/coco_instance_ms-crop.py',
    '../_base_/schedules/det_3x.py',
    '../_base_/det_runtime.py',
]

model = dict(backbone=dict(arch='small', drop_path_rate=0.15))

# No weight decay on any normalisation layer, in stem and heads too, besides the parameters with 'norm' in their names.
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))
