# ImageNet with a label map for every training image: data/imagenet/token_labels/train/n01440764/n01440764_18.pt is the
# map of data/imagenet/train/n01440764/n01440764_18.JPEG. tools/dataset_converters/make_token_labels.py makes them.
_base_ = './imagenet.py'

# Rotate, translate and crop the image and its tokens' labels together. The crop is the last geometric step.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadLabelMap', num_classes=1000),
    dict(
        type='TrackGeometry',
        transforms=[
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(
                type='RandAugment',
                policies='timm_increasing',
                num_policies=2,
                total_level=10,
                magnitude_level=9,
                magnitude_std=0.5,
                hparams=dict(pad_val=[round(x) for x in _base_.bgr_mean], interpolation='bicubic'),
            ),
            dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
        ],
    ),
    dict(
        type='RandomErasing',
        erase_prob=0.25,
        mode='rand',
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=_base_.bgr_mean,
        fill_std=_base_.bgr_std,
    ),
    dict(type='MakeTokenLabels', num_classes=1000, smoothing=0.1),
    dict(type='PackInputs', algorithm_keys=('class_score', 'token_score')),
]
# The released code evaluates token-label models with a crop ratio of 0.96, the others with 0.875.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=233, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='TokenLabelImageNet',
        data_prefix=dict(img_path='train', label_map_path='token_labels/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
