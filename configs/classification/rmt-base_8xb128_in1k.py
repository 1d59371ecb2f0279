_base_ = './rmt-tiny_8xb128_in1k.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.4))
