_base_ = './rmt-tiny_fpn_8xb2-80k_ade20k-512x512.py'

model = dict(backbone=dict(arch='large', drop_path_rate=0.5), neck=dict(in_channels=[112, 224, 448, 640]))
