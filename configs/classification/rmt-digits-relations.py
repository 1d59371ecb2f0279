# Small scenes of a 0 and another digit, made by tools/dataset_converters/make_relations.py, for `make ablation`: the
# class is where the other digit lies or, with data_root and the number of classes replaced, which one it is.
_base_ = './rmt-digits.py'

data_root = 'data/relations/side'
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]  # no augmentation: it would move digits
loader = dict(num_workers=0, persistent_workers=False)
model = dict(
    data_preprocessor=dict(num_classes=4),
    backbone=dict(
        arch=dict(
            embed_dims=(16, 32, 64, 96),
            depths=(1, 1, 2, 1),
            num_heads=(2, 2, 4, 4),
            decomposed=(True, True, True, False),
        )
    ),
    head=dict(num_classes=4, in_channels=96, hidden_channels=128),
)
train_dataloader = dict(**loader, dataset=dict(data_root=data_root, pipeline=pipeline))
val_dataloader = dict(**loader, dataset=dict(data_root=data_root))
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=8, val_interval=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=8, eta_min=1e-5, by_epoch=True, begin=0, end=8, convert_to_iter_based=True),
]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
