_base_ = './rmt-tiny_8xb128_in1k.py'

model = dict(backbone=dict(arch='swin-tiny'), head=dict(in_channels=768))
