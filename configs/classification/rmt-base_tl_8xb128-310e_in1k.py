_base_ = './rmt-small_tl_8xb128-310e_in1k.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.4))
