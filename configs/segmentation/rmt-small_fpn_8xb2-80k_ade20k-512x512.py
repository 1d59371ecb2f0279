_base_ = './rmt-tiny_fpn_8xb2-80k_ade20k-512x512.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.15))
