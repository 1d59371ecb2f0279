_base_ = './mask-rcnn_rmt-t_fpn_amp-1x_coco.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.4), neck=dict(in_channels=[80, 160, 320, 512]))
