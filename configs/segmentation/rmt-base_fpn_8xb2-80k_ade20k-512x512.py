_base_ = './rmt-tiny_fpn_8xb2-80k_ade20k-512x512.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.4), neck=dict(in_channels=[80, 160, 320, 512]))
