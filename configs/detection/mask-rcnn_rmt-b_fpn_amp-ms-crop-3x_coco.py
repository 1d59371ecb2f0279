_base_ = './mask-rcnn_rmt-s_fpn_amp-ms-crop-3x_coco.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.4), neck=dict(in_channels=[80, 160, 320, 512]))

optim_wrapper = dict(optimizer=dict(lr=2e-4))
