_base_ = './rmt-swin-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'

# The authors state no drop path rate for this size: this is Swin-S's.
model = dict(backbone=dict(arch='swin-small', drop_path_rate=0.3))
