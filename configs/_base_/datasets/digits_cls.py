# Single digits, made by tools/dataset_converters/make_digits.py: 64 x 64 pixels, one scan each; val has its own scans.
dataset_type = 'CustomDataset'
data_root = 'data/digits/imagenet'

# No flips: a mirrored digit may no longer be that digit. Ink and background may have any colour.
augmentations = [
    dict(
        type='RandAugment',
        policies=[
            dict(type='Rotate', magnitude_range=(0, 30)),
            dict(type='Shear', magnitude_range=(0, 0.3), direction='horizontal'),
            dict(type='Shear', magnitude_range=(0, 0.3), direction='vertical'),
            dict(type='Invert'),
        ],
        num_policies=2,
        magnitude_level=6,
        magnitude_std=0.5,
        hparams=dict(interpolation='bilinear'),
    ),
    dict(type='RandomResizedCrop', scale=64, crop_ratio_range=(0.75, 1.0)),
]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    *augmentations,
    dict(type='ColorJitter', brightness=0.3, contrast=0.3, saturation=0.5),
    dict(type='RandomGrayscale', prob=0.1, keep_channels=True),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]

train_dataloader = dict(
    batch_size=32,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type=dataset_type, data_root=data_root, data_prefix='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type=dataset_type, data_root=data_root, data_prefix='val', pipeline=test_pipeline),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
