_base_ = './rmt-swin-tiny_8xb128_in1k.py'

# The authors state no drop path rate for this size: this is Swin-S's.
model = dict(backbone=dict(arch='swin-small', drop_path_rate=0.3))
