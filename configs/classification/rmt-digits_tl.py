# The classifier of rmt-digits.py, trained with token labels that a trained one has made:
#   python tools/dataset_converters/make_token_labels.py configs/classification/rmt-digits.py CHECKPOINT \
#       data/digits/imagenet/train data/digits/imagenet/token_labels/train --size 64
_base_ = './rmt-digits.py'

model = dict(
    type='TokenLabelClassifier',
    head=dict(_delete_=True, type='RMTTokenLabelHead', num_classes=10, in_channels=192, hidden_channels=256),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadLabelMap', num_classes=10),
    dict(type='TrackGeometry', transforms=_base_.augmentations),
    dict(type='ColorJitter', brightness=0.3, contrast=0.3, saturation=0.5),
    dict(type='RandomGrayscale', prob=0.1, keep_channels=True),
    dict(type='MakeTokenLabels', num_classes=10),
    dict(type='PackInputs', algorithm_keys=('class_score', 'token_score')),
]
train_dataloader = dict(
    dataset=dict(
        type='TokenLabelDataset',
        data_prefix=dict(_delete_=True, img_path='train', label_map_path='token_labels/train'),
        pipeline=train_pipeline,
    )
)
