_base_ = './mask-rcnn_rmt-t_fpn_amp-1x_coco.py'

model = dict(backbone=dict(arch='swin-tiny'), neck=dict(in_channels=[96, 192, 384, 768]))
