_base_ = './mask-rcnn_rmt-swin-t_fpn_amp-1x_coco.py'

# The authors state no drop path rate for this size: this is Swin-S's.
model = dict(backbone=dict(arch='swin-small', drop_path_rate=0.3))
