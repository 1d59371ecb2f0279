# Ours, untrained: every layer of the backbone has 0.9 times the learning rate of the next layer.
_base_ = './mask-rcnn_rmt-s_fpn_amp-1x_coco.py'

optim_wrapper = dict(constructor='LayerDecayOptimWrapperConstructor', paramwise_cfg=dict(layer_decay_rate=0.9))
