# The digit scenes for a first result in minutes: `make demo`. Fewer epochs, proposals and RoIs, at a higher learning
# rate, and one sample a bin: RoIAlign took a third of a step. `make demo-full` runs the whole.
_base_ = './mask-rcnn_rmt-mini_fpn_digits.py'

model = dict(
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=1)),
        mask_roi_extractor=dict(roi_layer=dict(sampling_ratio=1)),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=200, max_per_img=100), rcnn=dict(sampler=dict(num=32))),
)

train_cfg = dict(max_epochs=4, val_interval=4)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', T_max=4, eta_min=1e-5, by_epoch=True, convert_to_iter_based=True),
]
