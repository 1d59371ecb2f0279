"""Compare every value of every config with the config of mmdet, mmseg or mmpretrain for the same head.

The published recipes were made from those configs, so a different value is either part of the recipe (or of the other
backbone), and is listed in a table below with its reason, or a mistake. A difference that is not listed fails, and so
does a listed one that does not occur. Other sizes are compared with the representative of their recipe in the same way.
"""

import importlib.util
import inspect
import os.path as osp
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

import rmt_mm

ABSENT = '(absent)'
# Top-level keys that mmengine's Runner and our tools read. All other variables only serve to build these.
READ = set(inspect.signature(Runner.__init__).parameters) | {
    'auto_scale_lr',
    'custom_imports',
    'runner_type',
    'tta_model',
    'tta_pipeline',
}

Reasons = Tuple[Tuple[str, Dict[str, Any]], ...]


class Recipe(NamedTuple):
    """The library configs that one of our configs is compared with, and the expected differences."""

    library: str
    bases: Tuple[str, ...]  # files below the library's configs
    differences: Reasons  # reason -> {path: our value}


def listed(reasons: Reasons) -> Dict[str, Any]:
    """Return path -> our value of a table, in which each path is listed once."""
    paths = [path for _, differences in reasons for path in differences]
    assert len(paths) == len(set(paths)), 'a path is listed twice'
    assert all(reason for reason, _ in reasons)
    return {path: value for _, differences in reasons for path, value in differences.items()}


def plain(node: Any) -> Any:
    """Turn a config into dicts, lists and values, tuples into lists: the libraries treat both alike."""
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    return [plain(value) for value in node] if isinstance(node, (list, tuple)) else node


def settings(cfg: Config) -> dict:
    """Return the keys of a config that are read, a top-level ``data_preprocessor`` in the model, as in mmengine."""
    out = plain({key: value for key, value in cfg.items() if key in READ})
    if 'data_preprocessor' in out:
        out['model'].setdefault('data_preprocessor', out.pop('data_preprocessor'))
    return out


def compare(theirs: Any, ours: Any, path: str = '') -> Iterator[Tuple[str, Any]]:
    """Yield (path, our value) of every difference. Dicts of another ``type`` differ as a whole."""
    if isinstance(theirs, dict) and isinstance(ours, dict) and theirs.get('type') == ours.get('type'):
        for key in sorted({*theirs, *ours}):
            yield from compare(theirs.get(key, ABSENT), ours.get(key, ABSENT), f'{path}.{key}'.lstrip('.'))
    elif (
        isinstance(theirs, list)
        and isinstance(ours, list)
        and len(theirs) == len(ours)
        and any(isinstance(item, (dict, list)) for item in ours)
    ):
        for i, (their_item, our_item) in enumerate(zip(theirs, ours)):
            yield from compare(their_item, our_item, f'{path}.{i}')
    elif theirs != ours or isinstance(theirs, bool) != isinstance(ours, bool):
        yield path, ours


def library_config(library: str, bases: Tuple[str, ...]) -> Config:
    spec = importlib.util.find_spec(library)  # finds it without importing it, which would take seconds
    if spec is None:
        pytest.skip(f'{library} is not installed')
    folder = osp.join(osp.dirname(spec.origin), '.mim', 'configs')
    if not osp.isdir(folder):
        pytest.skip(f'this {library} brings no configs: {folder} does not exist')
    text = f'_base_ = {[osp.join(folder, base) for base in bases]}'
    return Config.fromstring(text, '.py')


def load(name: str) -> Config:
    return Config.fromfile(rmt_mm.get_config_path(name), import_custom_modules=False)


def check(theirs: dict, ours: dict, reasons: Reasons) -> None:
    found, expected = dict(compare(theirs, ours)), listed(reasons)
    assert {path: found[path] for path in found if path not in expected} == {}, 'differences that are not listed'
    assert {path: expected[path] for path in expected if path not in found} == {}, 'listed, and there is no difference'
    assert found == plain(expected)


SYNC_BN = dict(type='SyncBN', requires_grad=True)
NORM_NAMES = dict(custom_keys={'norm': dict(decay_mult=0.0)})


def adamw(lr, weight_decay):
    return dict(type='AdamW', lr=lr, betas=[0.9, 0.999], weight_decay=weight_decay)


def backbone(arch='tiny', drop_path=0.1, **kwargs):
    return {'model.backbone': dict(type='RMT', arch=arch, drop_path_rate=drop_path, norm_cfg=SYNC_BN, **kwargs)}


IMPORT = ('the plugin is imported', {'custom_imports': dict(imports=['rmt_mm'], allow_failed_imports=False)})
CHECK = ('data are looked at before the first iteration', {'custom_hooks': [dict(type='DataCheckHook')]})
DISK = ("L's checkpoint with its optimizer is more than a gigabyte", {'default_hooks.checkpoint.max_keep_ckpts': 3})
RUNTIME = (IMPORT, CHECK, DISK)
FOUR_OUTPUTS = ('channels of the backbone', {'model.neck.in_channels': [64, 128, 256, 512]})
WARM_UP = ('mmcv 1 reaches the full rate at 500, mmengine at end - 1', {'param_scheduler.0.end': 501})
THREE_OUTPUTS = (
    'FPN from stride 8: only what it takes is computed',
    {**backbone(out_indices=[1, 2, 3]), 'model.neck.in_channels': [128, 256, 512], 'model.neck.start_level': 0},
)
LEVELS_8_TO_32 = ('backbone', {**backbone(out_indices=[1, 2, 3]), 'model.neck.in_channels': [128, 256, 512]})
BOX_TTA = {
    'tta_model': dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)),
    'tta_pipeline': [
        dict(type='LoadImageFromFile', backend_args=None),
        dict(
            type='TestTimeAug',
            transforms=[
                [
                    dict(type='Resize', scale=scale, keep_ratio=True)
                    for scale in ([1333, 800], [666, 400], [2000, 1200])
                ],
                [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)],
                [dict(type='LoadAnnotations', with_bbox=True)],
                [
                    dict(
                        type='PackDetInputs',
                        meta_keys=[
                            'img_id',
                            'img_path',
                            'ori_shape',
                            'img_shape',
                            'scale_factor',
                            'flip',
                            'flip_direction',
                        ],
                    )
                ],
            ],
        ),
    ],
}

# mmseg: all its ADE20K recipes
ADE20K = (
    *RUNTIME,
    ('8 GPUs with 2 images each', {'auto_scale_lr': dict(enable=False, base_batch_size=16)}),
    ('the backbone takes its weights from init_cfg', {'model.pretrained': ABSENT}),
    (
        'ADE20KDataset has reduce_zero_label=True, and mmseg warns of it in LoadAnnotations',
        {
            'train_dataloader.dataset.pipeline.1.reduce_zero_label': ABSENT,
            'val_dataloader.dataset.pipeline.2.reduce_zero_label': ABSENT,
            'test_dataloader.dataset.pipeline.2.reduce_zero_label': ABSENT,
        },
    ),
    ('None is the default', {'tta_pipeline.0.backend_args': ABSENT}),
)
SAVED_EVERY_8000 = (
    'a checkpoint every 8000 iterations in all our segmentors',
    {'default_hooks.checkpoint.interval': 8000},
)
UPERNET_POLY = (
    'as mmcv 1 computes it: decay from iteration 0, warm-up times it, last values at the number of iterations',
    {'param_scheduler.0.end': 1501, 'param_scheduler.1.begin': 0, 'param_scheduler.1.end': 160001},
)

RECIPES = {
    'mask-rcnn_rmt-t_fpn_amp-1x_coco': Recipe(
        'mmdet',
        (
            '_base_/models/mask-rcnn_r50_fpn.py',
            '_base_/datasets/coco_instance.py',
            '_base_/schedules/schedule_1x.py',
            '_base_/default_runtime.py',
        ),
        (
            *RUNTIME,
            FOUR_OUTPUTS,
            WARM_UP,
            ('backbone', backbone()),
            (
                'AdamW 4e-4, decay 0.05 but for names with norm; fp16',
                {'optim_wrapper': dict(type='AmpOptimWrapper', optimizer=adamw(4e-4, 0.05), paramwise_cfg=NORM_NAMES)},
            ),
        ),
    ),
    'mask-rcnn_rmt-s_fpn_amp-ms-crop-3x_coco': Recipe(
        'mmdet',
        ('swin/mask-rcnn_swin-t-p4-w7_fpn_amp-ms-crop-3x_coco.py',),
        (
            *RUNTIME,
            FOUR_OUTPUTS,
            ('backbone', backbone('small', 0.15)),
            ('500 iterations of warm-up, Swin has 1000', {'param_scheduler.0.end': 501}),
            (
                "4e-4; Swin's position parameters do not exist",
                {
                    'optim_wrapper.optimizer.lr': 4e-4,
                    'optim_wrapper.paramwise_cfg.custom_keys.absolute_pos_embed': ABSENT,
                    'optim_wrapper.paramwise_cfg.custom_keys.relative_position_bias_table': ABSENT,
                },
            ),
        ),
    ),
    'cascade-mask-rcnn_rmt-s_fpn_4conv1fc-giou_amp-ms-crop-3x_coco': Recipe(
        'mmdet',
        ('convnext/cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py',),
        (
            ('the plugin is imported', {'custom_imports.imports': ['rmt_mm']}),
            CHECK,
            DISK,
            FOUR_OUTPUTS,
            ('backbone', backbone('small', 0.15)),
            ('500 iterations of warm-up, ConvNeXt has 1000', {'param_scheduler.0.end': 501}),
            (
                '4e-4, no layer-wise decay; names with norm, and all norm layers, are exempt from weight decay',
                {
                    'optim_wrapper.constructor': ABSENT,
                    'optim_wrapper.optimizer.lr': 4e-4,
                    'optim_wrapper.paramwise_cfg.custom_keys': NORM_NAMES['custom_keys'],
                    'optim_wrapper.paramwise_cfg.norm_decay_mult': 0.0,
                    'optim_wrapper.paramwise_cfg.decay_rate': ABSENT,
                    'optim_wrapper.paramwise_cfg.decay_type': ABSENT,
                    'optim_wrapper.paramwise_cfg.num_layers': ABSENT,
                },
            ),
        ),
    ),
    'retinanet_rmt-t_fpn_amp-1x_coco': Recipe(
        'mmdet',
        (
            '_base_/models/retinanet_r50_fpn.py',
            '_base_/datasets/coco_detection.py',
            '_base_/schedules/schedule_1x.py',
            '_base_/default_runtime.py',
            'retinanet/retinanet_tta.py',
        ),
        (
            *RUNTIME,
            THREE_OUTPUTS,
            WARM_UP,
            (
                'AdamW 4e-4, decay 1e-4 of every parameter; fp16',
                {'optim_wrapper': dict(type='AmpOptimWrapper', optimizer=adamw(4e-4, 1e-4), paramwise_cfg={})},
            ),
        ),
    ),
    'fcos_rmt-t_fpn_gn-head_amp-1x_coco': Recipe(
        'mmdet',
        ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',),
        (
            *RUNTIME,
            THREE_OUTPUTS,
            ('test-time augmentation comes with the data set', BOX_TTA),
            (
                'ImageNet statistics in RGB instead of those of Caffe',
                {
                    'model.data_preprocessor.bgr_to_rgb': True,
                    'model.data_preprocessor.mean': [123.675, 116.28, 103.53],
                    'model.data_preprocessor.std': [58.395, 57.12, 57.375],
                },
            ),
            (
                'the schedule of our other detectors',
                {'param_scheduler.0': dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=501)},
            ),
            (
                'AdamW 1e-4; fp16',
                {
                    'optim_wrapper': dict(
                        type='AmpOptimWrapper',
                        optimizer=adamw(1e-4, 0.05),
                        paramwise_cfg=NORM_NAMES,
                        clip_grad=dict(max_norm=35, norm_type=2),
                    )
                },
            ),
        ),
    ),
    'dino-4scale_rmt-t_8xb2-12e_coco': Recipe(
        'mmdet',
        ('dino/dino-4scale_r50_8xb2-12e_coco.py',),
        (
            *RUNTIME,
            LEVELS_8_TO_32,
            ('False is the default', {'auto_scale_lr.enable': False}),
            ("torch's default", {'optim_wrapper.optimizer.betas': [0.9, 0.999]}),
            (
                'no masks, and False is the default',
                {
                    f'{split}_dataloader.dataset.pipeline.{step}.with_mask': False
                    for split, step in (('train', 1), ('val', 2), ('test', 2))
                },
            ),
            (
                'the crop of our 3x recipes, whose long side is bounded',
                {
                    f'train_dataloader.dataset.pipeline.3.transforms.1.0.scales.{i}': [short, 1333]
                    for i, short in enumerate((400, 500, 600))
                },
            ),
        ),
    ),
    'mask2former_rmt-t_8xb2-lsj-50e_coco': Recipe(
        'mmdet',
        ('mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',),
        (
            IMPORT,
            CHECK,
            ('backbone', {**backbone(), 'model.panoptic_head.in_channels': [64, 128, 256, 512]}),
            (
                'no panoptic labels',
                {
                    'model.data_preprocessor.batch_augments.0.pad_seg': ABSENT,
                    'model.data_preprocessor.pad_seg': ABSENT,
                    'model.data_preprocessor.seg_pad_value': ABSENT,
                    'train_dataloader.dataset.data_prefix.seg': ABSENT,
                    'val_dataloader.dataset.data_prefix.seg': ABSENT,
                    'test_dataloader.dataset.data_prefix.seg': ABSENT,
                },
            ),
            (
                'defaults',
                {
                    'default_hooks.checkpoint.save_last': ABSENT,
                    'model.data_preprocessor.batch_augments.0.mask_pad_value': ABSENT,
                    'model.init_cfg': ABSENT,
                    'model.panoptic_fusion_head.init_cfg': ABSENT,
                    'model.panoptic_head.loss_cls.reduction': ABSENT,
                    'model.panoptic_head.loss_dice.reduction': ABSENT,
                    'model.panoptic_head.loss_mask.reduction': ABSENT,
                    'model.panoptic_head.pixel_decoder.encoder.layer_cfg.ffn_cfg.act_cfg': ABSENT,
                    'model.panoptic_head.transformer_decoder.init_cfg': ABSENT,
                    'model.panoptic_head.transformer_decoder.layer_cfg.ffn_cfg.act_cfg': ABSENT,
                    'optim_wrapper.optimizer.eps': ABSENT,
                    'optim_wrapper.paramwise_cfg.custom_keys.backbone.decay_mult': ABSENT,
                },
            ),
            ('mmengine evaluates after the last iteration without it', {'train_cfg.dynamic_intervals': ABSENT}),
            (
                'a list, as in our other configs',
                {
                    'param_scheduler': [
                        dict(
                            type='MultiStepLR',
                            begin=0,
                            end=368750,
                            by_epoch=False,
                            milestones=[327778, 355092],
                            gamma=0.1,
                        )
                    ]
                },
            ),
            ('validation metrics are logged by iteration', {'default_hooks.logger.log_metric_by_epoch': False}),
            (
                'images are resized as integers in testing, as in our other detectors',
                {
                    'val_dataloader.dataset.pipeline.0.to_float32': ABSENT,
                    'test_dataloader.dataset.pipeline.0.to_float32': ABSENT,
                },
            ),
        ),
    ),
    'rmt-tiny_upernet_8xb2-amp-160k_ade20k-512x512': Recipe(
        'mmseg',
        ('swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',),
        (
            *ADE20K,
            UPERNET_POLY,
            SAVED_EVERY_8000,
            (
                'backbone',
                {
                    **backbone(),
                    'model.decode_head.in_channels': [64, 128, 256, 512],
                    'model.auxiliary_head.in_channels': 256,
                },
            ),
            (
                "fp16 with a fixed scale; Swin's position parameters do not exist",
                {
                    'optim_wrapper': dict(
                        type='AmpOptimWrapper', loss_scale=512.0, optimizer=adamw(6e-5, 0.01), paramwise_cfg=NORM_NAMES
                    )
                },
            ),
        ),
    ),
    'rmt-tiny_fpn_8xb2-80k_ade20k-512x512': Recipe(
        'mmseg',
        (
            '_base_/models/fpn_r50.py',
            '_base_/datasets/ade20k.py',
            '_base_/default_runtime.py',
            '_base_/schedules/schedule_80k.py',
        ),
        (
            *ADE20K,
            FOUR_OUTPUTS,
            ('backbone', backbone()),
            ('ADE20K', {'model.decode_head.num_classes': 150, 'model.data_preprocessor.size': [512, 512]}),
            ('8 GPUs with 2 images each', {'train_dataloader.batch_size': 2}),
            (
                'AdamW 1e-4, decay 1e-4 of every parameter',
                {'optim_wrapper.optimizer': adamw(1e-4, 1e-4), 'optim_wrapper.clip_grad': ABSENT},
            ),
            (
                'down to 1e-6, which mmcv 1 reaches at the number of iterations',
                {'param_scheduler.0.eta_min': 1e-6, 'param_scheduler.0.end': 80001},
            ),
        ),
    ),
    'rmt-tiny_segformer_8xb2-amp-160k_ade20k-512x512': Recipe(
        'mmseg',
        ('segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',),
        (
            *ADE20K,
            UPERNET_POLY,
            SAVED_EVERY_8000,
            ('backbone', {**backbone(), 'model.decode_head.in_channels': [64, 128, 256, 512]}),
            ('the base has one, which is taken away', {'model.auxiliary_head': None}),
            (
                "fp16; MiT's position parameters do not exist",
                {
                    'optim_wrapper': dict(
                        type='AmpOptimWrapper',
                        loss_scale=512.0,
                        optimizer=adamw(6e-5, 0.01),
                        paramwise_cfg=dict(custom_keys={'norm': dict(decay_mult=0.0), 'head': dict(lr_mult=10.0)}),
                    )
                },
            ),
            ('as in our other segmentors', {'train_dataloader.num_workers': 4}),
        ),
    ),
}

# mmpretrain
CLASSIFICATION_IMPORT = (
    'the plugin is imported',
    {'custom_imports': dict(imports=['rmt_mm.classification'], allow_failed_imports=False)},
)
LOADERS = (
    '128 images a GPU',
    {
        f'{split}_dataloader.{key}': value
        for split in ('train', 'val', 'test')
        for key, value in dict(batch_size=128, num_workers=8, persistent_workers=True).items()
    },
)
BEST = ('the published figure is that of the best epoch', {'default_hooks.checkpoint.save_best': 'auto'})
RECIPES.update(
    {
        'rmt-tiny_8xb128_in1k': Recipe(
            'mmpretrain',
            ('swin_transformer/swin-tiny_16xb64_in1k.py',),
            (
                CLASSIFICATION_IMPORT,
                DISK,
                BEST,
                LOADERS,
                (
                    'backbone and head',
                    {
                        **backbone(out_indices=[3], out_norm=False),
                        'model.neck': ABSENT,
                        'model.head': dict(
                            type='RMTClsHead',
                            num_classes=1000,
                            in_channels=512,
                            norm_cfg=SYNC_BN,
                            loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
                        ),
                        'model.init_cfg': ABSENT,
                    },
                ),
                (
                    'an EMA of the weights; data are looked at',
                    {
                        'custom_hooks': [
                            dict(type='DataCheckHook'),
                            dict(
                                type='BatchScaledEMAHook',
                                decay=0.99996,
                                base_batch_size=512,
                                update_buffers=True,
                                evaluate_on_ema=True,
                                evaluate_on_origin=True,
                                priority='ABOVE_NORMAL',
                            ),
                        ]
                    },
                ),
                (
                    "no clipping; AMP; Swin's position parameters do not exist",
                    {
                        'optim_wrapper': dict(
                            type='AmpOptimWrapper',
                            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05, eps=1e-8, betas=[0.9, 0.999]),
                            paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
                        )
                    },
                ),
                (
                    '5 epochs of warm-up; the cosine counts from the first epoch, every iteration',
                    {
                        'param_scheduler.0.begin': 0,
                        'param_scheduler.0.end': 5,
                        'param_scheduler.1.T_max': 300,
                        'param_scheduler.1.begin': 0,
                        'param_scheduler.1.end': 300,
                        'param_scheduler.1.convert_to_iter_based': True,
                    },
                ),
                (
                    'repeated augmentation',
                    {'train_dataloader.sampler': dict(type='RepeatAugSampler', shuffle=True, num_repeats=3)},
                ),
                ('defaults', {'auto_scale_lr.enable': False, 'randomness': ABSENT}),
            ),
        ),
        'rmt-tiny_linear-probe_8xb128-90e_in1k': Recipe(
            'mmpretrain',
            ('mae/benchmarks/vit-base-p16_8xb2048-linear-coslr-90e_in1k.py',),
            (
                CLASSIFICATION_IMPORT,
                CHECK,
                BEST,
                LOADERS,
                (
                    'backbone, frozen; a Linear layer after pooling',
                    {
                        **backbone(
                            drop_path=0.0,
                            out_indices=[3],
                            out_norm=False,
                            frozen_stages=4,
                            init_cfg=dict(
                                type='Pretrained',
                                checkpoint='work_dirs/rmt-tiny_8xb128_in1k/epoch_300.pth',
                                prefix='backbone.',
                            ),
                        ),
                        'model.neck': dict(type='GlobalAveragePooling'),
                        'model.head': dict(
                            type='LinearClsHead',
                            num_classes=1000,
                            in_channels=512,
                            loss=dict(type='CrossEntropyLoss'),
                            cal_acc=True,
                        ),
                        'model.train_cfg': None,
                    },
                ),
                (
                    'SGD at batch 1024 instead of LARS at 16384',
                    {
                        'optim_wrapper.optimizer': dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.0),
                        'optim_wrapper.paramwise_cfg': None,
                        'param_scheduler': [
                            dict(
                                type='CosineAnnealingLR',
                                T_max=90,
                                by_epoch=True,
                                begin=0,
                                end=90,
                                convert_to_iter_based=True,
                            )
                        ],
                    },
                ),
                (
                    'bicubic, as the backbone was trained and tested',
                    {
                        f'{split}_dataloader.dataset.pipeline.1.interpolation': 'bicubic'
                        for split in ('train', 'val', 'test')
                    },
                ),
                (
                    'defaults',
                    {
                        'auto_scale_lr.enable': False,
                        'randomness': ABSENT,
                        'train_dataloader.drop_last': ABSENT,
                        'val_dataloader.drop_last': ABSENT,
                        'test_dataloader.drop_last': ABSENT,
                        'default_hooks.logger.interval': 100,
                    },
                ),
            ),
        ),
    }
)


def size(arch, drop_path, **in_channels):
    """Return the differences between sizes; ``in_channels`` of neck, decode_head... by name.

    With ``drop_path`` None, the rate is the same.
    """
    channels = {f'model.{name}.in_channels': value for name, value in in_channels.items()}
    rate = {} if drop_path is None else {'model.backbone.drop_path_rate': drop_path}
    return ('size', {'model.backbone.arch': arch, **rate, **channels})


SMALL, BASE, LARGE = ('small', 0.15), ('base', 0.4), ('large', 0.5)
SWIN_TINY, SWIN_SMALL = ('swin-tiny', None), ('swin-small', 0.3)
SWIN4 = [96, 192, 384, 768]
B4, L4 = [80, 160, 320, 512], [112, 224, 448, 640]
RATE_2E_4 = ('published rate', {'optim_wrapper.optimizer.lr': 2e-4})
HEADS_OF_B = dict(decode_head=B4, auxiliary_head=320)
HEADS_OF_L = dict(decode_head=L4, auxiliary_head=448)
# config -> (representative, differences)
VARIANTS: Dict[str, Tuple[str, Reasons]] = {
    'mask-rcnn_rmt-s_fpn_amp-1x_coco': ('mask-rcnn_rmt-t_fpn_amp-1x_coco', (size(*SMALL),)),
    'mask-rcnn_rmt-b_fpn_amp-1x_coco': ('mask-rcnn_rmt-t_fpn_amp-1x_coco', (size(*BASE, neck=B4),)),
    'mask-rcnn_rmt-l_fpn_amp-1x_coco': ('mask-rcnn_rmt-t_fpn_amp-1x_coco', (size(*LARGE, neck=L4), RATE_2E_4)),
    'mask-rcnn_rmt-s_fpn_amp-1x-layer-decay_coco': (
        'mask-rcnn_rmt-s_fpn_amp-1x_coco',
        (
            (
                'layer-wise decay',
                {
                    'optim_wrapper.constructor': 'LayerDecayOptimWrapperConstructor',
                    'optim_wrapper.paramwise_cfg.layer_decay_rate': 0.9,
                },
            ),
        ),
    ),
    'mask-rcnn_rmt-b_fpn_amp-ms-crop-3x_coco': (
        'mask-rcnn_rmt-s_fpn_amp-ms-crop-3x_coco',
        (size(*BASE, neck=B4), RATE_2E_4),
    ),
    'mask-rcnn_rmt-l_fpn_amp-ms-crop-3x_coco': (
        'mask-rcnn_rmt-s_fpn_amp-ms-crop-3x_coco',
        (
            size(*LARGE, neck=L4),
            RATE_2E_4,
            ('1 image a GPU', {'train_dataloader.batch_size': 1, 'auto_scale_lr.base_batch_size': 8}),
        ),
    ),
    'cascade-mask-rcnn_rmt-b_fpn_4conv1fc-giou_amp-ms-crop-3x_coco': (
        'cascade-mask-rcnn_rmt-s_fpn_4conv1fc-giou_amp-ms-crop-3x_coco',
        (size(*BASE, neck=B4),),
    ),
    'mask-rcnn_rmt-swin-t_fpn_amp-1x_coco': (
        'mask-rcnn_rmt-t_fpn_amp-1x_coco',
        (size(*SWIN_TINY, neck=SWIN4),),
    ),
    'mask-rcnn_rmt-swin-s_fpn_amp-1x_coco': ('mask-rcnn_rmt-swin-t_fpn_amp-1x_coco', (size(*SWIN_SMALL),)),
    'retinanet_rmt-s_fpn_amp-1x_coco': ('retinanet_rmt-t_fpn_amp-1x_coco', (size(*SMALL),)),
    'retinanet_rmt-b_fpn_amp-1x_coco': ('retinanet_rmt-t_fpn_amp-1x_coco', (size(*BASE, neck=B4[1:]),)),
    'retinanet_rmt-l_fpn_amp-1x_coco': ('retinanet_rmt-t_fpn_amp-1x_coco', (size(*LARGE, neck=L4[1:]), RATE_2E_4)),
    'rmt-small_fpn_8xb2-80k_ade20k-512x512': ('rmt-tiny_fpn_8xb2-80k_ade20k-512x512', (size(*SMALL),)),
    'rmt-base_fpn_8xb2-80k_ade20k-512x512': ('rmt-tiny_fpn_8xb2-80k_ade20k-512x512', (size(*BASE, neck=B4),)),
    'rmt-large_fpn_8xb2-80k_ade20k-512x512': ('rmt-tiny_fpn_8xb2-80k_ade20k-512x512', (size(*LARGE, neck=L4),)),
    'rmt-small_upernet_8xb2-amp-160k_ade20k-512x512': (
        'rmt-tiny_upernet_8xb2-amp-160k_ade20k-512x512',
        (size(*SMALL),),
    ),
    'rmt-base_upernet_8xb2-amp-160k_ade20k-512x512': (
        'rmt-tiny_upernet_8xb2-amp-160k_ade20k-512x512',
        (size(*BASE, **HEADS_OF_B),),
    ),
    'rmt-large_upernet_8xb2-amp-160k_ade20k-512x512': (
        'rmt-tiny_upernet_8xb2-amp-160k_ade20k-512x512',
        (size(*LARGE, **HEADS_OF_L),),
    ),
    'rmt-swin-tiny_upernet_8xb2-amp-160k_ade20k-512x512': (
        'rmt-tiny_upernet_8xb2-amp-160k_ade20k-512x512',
        (size(*SWIN_TINY, decode_head=SWIN4, auxiliary_head=384),),
    ),
    'rmt-swin-small_upernet_8xb2-amp-160k_ade20k-512x512': (
        'rmt-swin-tiny_upernet_8xb2-amp-160k_ade20k-512x512',
        (size(*SWIN_SMALL),),
    ),
    'rmt-small_8xb128_in1k': ('rmt-tiny_8xb128_in1k', (size(*SMALL),)),
    'rmt-swin-tiny_8xb128_in1k': ('rmt-tiny_8xb128_in1k', (size(*SWIN_TINY, head=768),)),
    'rmt-swin-small_8xb128_in1k': ('rmt-swin-tiny_8xb128_in1k', (size(*SWIN_SMALL),)),
    'rmt-deit-small_8xb128_in1k': (
        'rmt-tiny_8xb128_in1k',
        (
            (
                "DeiT-S's skeleton: one stage, a LayerNorm, averaged tokens and one Linear layer",
                {
                    'model.backbone.arch': 'deit-small',
                    'model.backbone.out_indices': None,
                    'model.backbone.out_norm': True,
                    'model.neck': dict(type='GlobalAveragePooling'),
                    'model.head': dict(
                        type='LinearClsHead',
                        num_classes=1000,
                        in_channels=384,
                        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
                    ),
                },
            ),
        ),
    ),
    'rmt-base_8xb128_in1k': ('rmt-tiny_8xb128_in1k', (size(*BASE),)),
    'rmt-large_8xb128_in1k': ('rmt-tiny_8xb128_in1k', (size(*LARGE, head=640),)),
    'rmt-base_tl_8xb128-310e_in1k': ('rmt-small_tl_8xb128-310e_in1k', (size(*BASE),)),
    'rmt-large_tl_8xb128-310e_in1k': ('rmt-small_tl_8xb128-310e_in1k', (size(*LARGE, head=640),)),
}
ERASING = dict(
    type='RandomErasing',
    erase_prob=0.25,
    mode='rand',
    min_area_ratio=0.02,
    max_area_ratio=1 / 3,
    fill_color=[103.53, 116.28, 123.675],
    fill_std=[57.375, 57.12, 58.395],
)
VARIANTS['rmt-small_tl_8xb128-310e_in1k'] = (
    'rmt-small_8xb128_in1k',
    (
        (
            'tokens are mixed and labelled: no Mixup, no CutMix, no smoothing in the head',
            {
                'model': dict(
                    type='TokenLabelClassifier',
                    data_preprocessor=dict(
                        num_classes=1000, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
                    ),
                    backbone=dict(
                        type='RMT', arch='small', drop_path_rate=0.15, out_indices=[3], out_norm=False, norm_cfg=SYNC_BN
                    ),
                    head=dict(
                        type='RMTTokenLabelHead',
                        num_classes=1000,
                        in_channels=512,
                        norm_cfg=SYNC_BN,
                        cls_weight=1.0,
                        aux_weight=0.5,
                    ),
                )
            },
        ),
        (
            'every image has a label map, which moves with it; the crop comes last',
            {
                'train_dataloader.dataset': dict(
                    type='TokenLabelImageNet',
                    data_root='data/imagenet',
                    data_prefix=dict(img_path='train', label_map_path='token_labels/train'),
                    split='train',
                    pipeline=[
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
                                    hparams=dict(pad_val=[104, 116, 124], interpolation='bicubic'),
                                ),
                                dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
                            ],
                        ),
                        ERASING,
                        dict(type='MakeTokenLabels', num_classes=1000, smoothing=0.1),
                        dict(type='PackInputs', algorithm_keys=['class_score', 'token_score']),
                    ],
                )
            },
        ),
        ('no repeated augmentation', {'train_dataloader.sampler': dict(type='DefaultSampler', shuffle=True)}),
        (
            'tested with a crop ratio of 0.96',
            {f'{split}_dataloader.dataset.pipeline.1.scale': 233 for split in ('val', 'test')},
        ),
        ('310 epochs', {'train_cfg.max_epochs': 310, 'param_scheduler.1.T_max': 310, 'param_scheduler.1.end': 310}),
    ),
)


@pytest.mark.parametrize('name', RECIPES)
def test_every_difference_from_the_library_is_intended(name):
    recipe = RECIPES[name]
    check(settings(library_config(recipe.library, recipe.bases)), settings(load(name)), recipe.differences)


@pytest.mark.parametrize('name', VARIANTS)
def test_every_difference_between_sizes_is_intended(name):
    representative, differences = VARIANTS[name]
    check(settings(load(representative)), settings(load(name)), differences)


def test_every_config_is_compared():
    own = {name for name in rmt_mm.list_configs() if 'digits' not in name}  # these have their own data and schedules
    assert {*RECIPES, *VARIANTS} == own
    assert not {*RECIPES} & {*VARIANTS}


def sources(node: Any) -> List[str]:
    """Return all names of files, folders and splits in the configs of data sets."""
    if isinstance(node, list):
        return [source for item in node for source in sources(item)]
    if not isinstance(node, dict):
        return []
    own = [node.get(key) for key in ('ann_file', 'data_prefix', 'split')]
    flat = [value for item in own for value in (item.values() if isinstance(item, dict) else [item]) if value]
    return flat + [source for value in node.values() for source in sources(value)]


@pytest.mark.parametrize('name', rmt_mm.list_configs())
def test_no_config_validates_on_what_it_trains_on(name):
    """This includes the digits configs, which are compared with no library."""
    cfg = settings(load(name))
    train, val = sources(cfg['train_dataloader']['dataset']), sources(cfg['val_dataloader']['dataset'])
    assert train and val and not set(train) & set(val)
    assert all('train' in source for source in train) and all('val' in source for source in val)
    assert cfg['test_dataloader'] == cfg['val_dataloader'] and cfg['test_evaluator'] == cfg['val_evaluator']
    ann_file = cfg['val_evaluator'].get('ann_file')
    if ann_file:
        dataset = cfg['val_dataloader']['dataset']
        assert ann_file == osp.join(dataset['data_root'], dataset['ann_file'])
