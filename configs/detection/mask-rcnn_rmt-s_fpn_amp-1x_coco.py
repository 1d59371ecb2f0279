_base_ = './mask-rcnn_rmt-t_fpn_amp-1x_coco.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.15))
