_base_ = './rmt-small_tl_8xb128-310e_in1k.py'

model = dict(backbone=dict(arch='large', drop_path_rate=0.5), head=dict(in_channels=640))
