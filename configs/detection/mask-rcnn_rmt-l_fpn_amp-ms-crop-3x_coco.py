_base_ = './mask-rcnn_rmt-s_fpn_amp-ms-crop-3x_coco.py'

model = dict(backbone=dict(arch='large', drop_path_rate=0.5), neck=dict(in_channels=[112, 224, 448, 640]))

# 8 GPUs with 1 image each, at the learning rate of B, which has 2 each
train_dataloader = dict(batch_size=1)
auto_scale_lr = dict(base_batch_size=8)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
