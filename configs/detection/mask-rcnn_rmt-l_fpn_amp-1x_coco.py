_base_ = './mask-rcnn_rmt-t_fpn_amp-1x_coco.py'

model = dict(backbone=dict(arch='large', drop_path_rate=0.5), neck=dict(in_channels=[112, 224, 448, 640]))

optim_wrapper = dict(optimizer=dict(lr=2e-4))
