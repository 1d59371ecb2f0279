"""Every published row has a config that, with its bases, is the published model and recipe; and every config builds."""

import configparser
import copy
import functools
import json

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import rmt_mm

from support.published import ROWS, TINY

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')


@functools.cache
def read(name):
    return Config.fromfile(rmt_mm.get_config_path(name))


DETECTORS = [name for name in ROWS if name.endswith('coco')]
SEGMENTORS = [name for name in ROWS if name.endswith('ade20k-512x512')]
CONFIGS = [name for name in rmt_mm.list_configs() if read(name).get('default_scope') in ('mmdet', 'mmseg')]


def load(name):
    cfg = copy.deepcopy(read(name))
    init_default_scope(cfg.default_scope)
    return cfg


def build(name, device='meta'):
    """Build a config's model and its optimizer, without the AMP wrapper, which needs a GPU."""
    cfg = load(name)
    with torch.device(device):  # tensors of meta have no values, and take no time to initialise
        model = MODELS.build(cfg.model)
    for key in ('type', 'loss_scale'):
        cfg.optim_wrapper.pop(key, None)
    return cfg, model, build_optim_wrapper(model, cfg.optim_wrapper).optimizer


def groups_by_name(model, optimizer):
    names = {id(param): name for name, param in model.named_parameters()}
    return {names[id(param)]: group for group in optimizer.param_groups for param in group['params']}


@pytest.mark.parametrize('name', ROWS)
def test_model(name):
    cfg, row = load(name), ROWS[name]
    backbone = cfg.model.backbone
    assert backbone.type == 'RMT'
    assert backbone.arch == row.size.arch
    assert backbone.drop_path_rate == row.size.drop_path
    assert backbone.norm_cfg.type == 'SyncBN'
    assert 'norm_eval' not in backbone and 'frozen_stages' not in backbone  # statistics train, as in the released code
    assert cfg.custom_imports == dict(imports=['rmt_mm'], allow_failed_imports=False)


@pytest.mark.parametrize('name', ROWS)
def test_parameter_groups(name):
    row = ROWS[name]
    cfg, model, optimizer = build(name)
    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    norm_parameters = {
        f'{prefix}.{name}'
        for prefix, module in model.named_modules()
        if isinstance(module, norms)
        for name, _ in module.named_parameters(recurse=False)
    }
    groups = groups_by_name(model, optimizer)

    assert isinstance(optimizer, torch.optim.AdamW)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    for parameter, group in groups.items():
        exempt = (row.exempt != 'nothing' and 'norm' in parameter) or (
            row.exempt == 'names and norms' and parameter in norm_parameters
        )
        assert group['weight_decay'] == (0 if exempt else row.weight_decay), parameter
        assert group['lr'] == row.lr and group['betas'] == (0.9, 0.999), parameter
    # As in the released code, the names of the stem's norms do not contain 'norm': they are exempt only with all norms.
    assert groups['backbone.stem.1.weight']['weight_decay'] == (
        0 if row.exempt == 'names and norms' else row.weight_decay
    )

    four_outputs = len(cfg.model.backbone.get('out_indices', range(4))) == 4
    if four_outputs:
        assert sum(p.numel() for p in model.backbone.parameters()) == row.size.params_backbone


def test_exempt_names_are_the_official_ones(root):
    layouts = json.loads((root / 'tests/data/golden/official_checkpoint_keys.json').read_text())
    for size in ('tiny', 'small', 'base', 'large'):
        shapes = layouts[f'{size}/dense']
        official = {name: torch.empty(shape, device='meta') for name, shape in shapes.items()}
        theirs = rmt_mm.convert_official_state_dict({n: t for n, t in official.items() if 'norm' in n})
        ours = {name for name in rmt_mm.convert_official_state_dict(official) if 'norm' in name}
        assert ours == set(theirs)
        assert len(ours) > 50


def check_pixels(cfg):
    """Check that pixels become RGB (OpenCV reads BGR), with ImageNet's means and deviations."""
    preprocessor = cfg.model.data_preprocessor
    assert preprocessor.bgr_to_rgb is True
    assert preprocessor.mean == [123.675, 116.28, 103.53] and preprocessor.std == [58.395, 57.12, 57.375]


def check_splits(cfg, train, val):
    """Check the files and folders that each data set reads."""

    def read(loader):
        dataset = cfg[loader].dataset
        return {*dataset.data_prefix.values(), *([dataset.ann_file] if 'ann_file' in dataset else [])}

    assert read('train_dataloader') == train
    assert read('val_dataloader') == read('test_dataloader') == val
    assert cfg.train_dataloader.sampler.shuffle and not cfg.val_dataloader.sampler.shuffle


@pytest.mark.parametrize('name', DETECTORS)
def test_detection_recipe(name):
    """Learning rates are simulated in test_schedules.py."""
    cfg, row = load(name), ROWS[name]
    assert (cfg.train_cfg.type, cfg.train_cfg.max_epochs, cfg.train_cfg.val_interval) == (
        'EpochBasedTrainLoop',
        row.length,
        1,
    )
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert 'loss_scale' not in cfg.optim_wrapper and 'clip_grad' not in cfg.optim_wrapper
    check_pixels(cfg)
    check_splits(
        cfg, {'train2017/', 'annotations/instances_train2017.json'}, {'val2017/', 'annotations/instances_val2017.json'}
    )
    assert cfg.train_dataloader.dataset.filter_cfg == dict(filter_empty_gt=True, min_size=32)
    assert 'filter_cfg' not in cfg.val_dataloader.dataset and cfg.val_dataloader.dataset.test_mode

    masks = not name.startswith('retinanet')
    metrics = ['bbox', 'segm'] if masks else 'bbox'
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert evaluator.type == 'CocoMetric' and evaluator.metric == metrics and not evaluator.format_only
        assert evaluator.ann_file == 'data/coco/annotations/instances_val2017.json'
    pipeline = cfg.train_dataloader.dataset.pipeline
    assert [step.type for step in pipeline] == [
        'LoadImageFromFile',
        'LoadAnnotations',
        *(['Resize', 'RandomFlip'] if row.length == 12 else ['RandomFlip', 'RandomChoice']),
        'PackDetInputs',
    ]
    assert pipeline[1].get('with_mask', False) == masks and pipeline[1].with_bbox
    (flip,) = (step for step in pipeline if step.type == 'RandomFlip')
    assert flip.prob == 0.5
    if row.length == 12:
        resize = pipeline[2]
        assert tuple(resize.scale) == (1333, 800) and resize.keep_ratio
    else:
        scales = [(short, 1333) for short in (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)]
        assert 'prob' not in pipeline[3]  # both with the same probability
        (plain,), (before, crop, after) = pipeline[3].transforms
        for step in (plain, before, after):
            assert step.type == 'RandomChoiceResize' and step.keep_ratio
            assert [tuple(s) for s in step.scales] == (
                [(400, 1333), (500, 1333), (600, 1333)] if step is before else scales
            )
        assert (crop.type, crop.crop_type, tuple(crop.crop_size)) == ('RandomCrop', 'absolute_range', (384, 600))
        assert crop.allow_negative_crop
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        load_image, resize, annotations, pack = loader.dataset.pipeline
        assert resize == dict(type='Resize', scale=(1333, 800), keep_ratio=True)
        assert (load_image.type, annotations.type, pack.type) == (
            'LoadImageFromFile',
            'LoadAnnotations',
            'PackDetInputs',
        )
        assert 'scale_factor' in pack.meta_keys and 'ori_shape' in pack.meta_keys  # boxes are scaled back by them


@pytest.mark.parametrize('name', DETECTORS)
def test_detection_heads(name):
    """The settings that the released recipes do not change are mmdet's."""
    model = load(name).model
    test = model.test_cfg if 'bbox_head' in model else model.test_cfg.rcnn
    assert test.score_thr == 0.05 and test.max_per_img == 100 and test.nms == dict(type='nms', iou_threshold=0.5)
    if 'bbox_head' in model:
        anchors, coders, assigners = model.bbox_head.anchor_generator, [model.bbox_head.bbox_coder], []
        assert (anchors.octave_base_scale, anchors.scales_per_octave, anchors.strides) == (4, 3, [8, 16, 32, 64, 128])
        assert model.train_cfg.assigner == dict(
            type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1
        )
        assert model.bbox_head.loss_cls == dict(
            type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0
        )
    else:
        anchors, coders = model.rpn_head.anchor_generator, [model.rpn_head.bbox_coder]
        assert anchors.scales == [8] and anchors.strides == [4, 8, 16, 32, 64]
        rpn = model.train_cfg.rpn.assigner
        assert (rpn.pos_iou_thr, rpn.neg_iou_thr, rpn.min_pos_iou) == (0.7, 0.3, 0.3)
        cascade = model.type == 'CascadeRCNN'
        heads = model.roi_head.bbox_head if cascade else [model.roi_head.bbox_head]
        stages = model.train_cfg.rcnn if cascade else [model.train_cfg.rcnn]
        assigners = [stage.assigner for stage in stages]
        for i, (head, assigner) in enumerate(zip(heads, assigners)):
            stds = ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])[i]
            assert head.bbox_coder == dict(
                type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=stds
            )
            assert not head.reg_class_agnostic
            assert [assigner[key] for key in ('pos_iou_thr', 'neg_iou_thr', 'min_pos_iou')] == [0.5 + 0.1 * i] * 3
            assert assigner.match_low_quality is not cascade
        assert model.test_cfg.rcnn.mask_thr_binary == 0.5
        assert model.data_preprocessor.pad_mask
    assert anchors.ratios == [0.5, 1.0, 2.0]
    assert coders[0].target_means == [0.0] * 4 and coders[0].target_stds == [1.0] * 4
    assert model.data_preprocessor.pad_size_divisor == 32


@pytest.mark.parametrize('name', SEGMENTORS)
def test_segmentation_recipe(name):
    """Learning rates are simulated in test_schedules.py."""
    cfg, row = load(name), ROWS[name]
    upernet = 'upernet' in name
    assert cfg.train_cfg.type == 'IterBasedTrainLoop' and cfg.train_cfg.max_iters == row.length
    assert row.length % cfg.train_cfg.val_interval == 0  # so that the last weights are evaluated
    if upernet:
        assert cfg.optim_wrapper.type == 'AmpOptimWrapper' and cfg.optim_wrapper.loss_scale == 512.0
        assert cfg.model.decode_head.channels == 512
        auxiliary = cfg.model.auxiliary_head
        assert (auxiliary.type, auxiliary.in_index, auxiliary.channels, auxiliary.loss_decode.loss_weight) == (
            'FCNHead',
            2,
            256,
            0.4,
        )
        assert auxiliary.dropout_ratio == 0.1 and auxiliary.num_classes == 150
    else:
        assert cfg.optim_wrapper.type == 'OptimWrapper'
        assert cfg.model.neck.out_channels == 256 and cfg.model.decode_head.channels == 128
        assert cfg.model.get('auxiliary_head') is None
    head = cfg.model.decode_head
    assert head.dropout_ratio == 0.1 and head.num_classes == 150 and head.norm_cfg.type == 'SyncBN'
    assert head.loss_decode == dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)
    assert not head.align_corners
    check_pixels(cfg)
    preprocessor = cfg.model.data_preprocessor
    assert (tuple(preprocessor.size), preprocessor.pad_val, preprocessor.seg_pad_val) == ((512, 512), 0, 255)
    check_splits(cfg, {'images/training', 'annotations/training'}, {'images/validation', 'annotations/validation'})
    assert cfg.val_evaluator == cfg.test_evaluator == dict(type='IoUMetric', iou_metrics=['mIoU'])

    pipeline = cfg.train_dataloader.dataset.pipeline
    assert [step.type for step in pipeline] == [
        'LoadImageFromFile',
        'LoadAnnotations',
        'RandomResize',
        'RandomCrop',
        'RandomFlip',
        'PhotoMetricDistortion',
        'PackSegInputs',
    ]
    _, _, resize, crop, flip, _, _ = pipeline
    assert resize == dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True)
    assert crop == dict(type='RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75)
    assert flip.prob == 0.5
    assert cfg.model.test_cfg == dict(mode='whole')
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        assert [step.type for step in loader.dataset.pipeline] == [
            'LoadImageFromFile',
            'Resize',
            'LoadAnnotations',
            'PackSegInputs',
        ]  # labels keep their size
        assert loader.dataset.pipeline[1] == dict(type='Resize', scale=(2048, 512), keep_ratio=True)


def test_background_is_ignored(tmp_path):
    """Label 0 of ADE20K's files is no class: the config's data sets declare it, and the loader maps 0 to ignored."""
    import cv2
    import numpy as np
    from mmseg.registry import DATASETS

    for folder in ('images', 'annotations'):
        (tmp_path / folder / 'validation').mkdir(parents=True)
    cv2.imwrite(str(tmp_path / 'images/validation/a.jpg'), np.zeros((8, 8, 3), np.uint8))
    cv2.imwrite(str(tmp_path / 'annotations/validation/a.png'), np.arange(64, dtype=np.uint8).reshape(8, 8))
    cfg = load('rmt-tiny_fpn_8xb2-80k_ade20k-512x512').val_dataloader.dataset
    cfg.data_root = str(tmp_path)
    labels = DATASETS.build(cfg)[0]['data_samples'].gt_sem_seg.data.flatten().tolist()
    assert labels == [255, *range(63)]


@pytest.mark.parametrize('name', ROWS)
def test_batch(name):
    cfg, row = load(name), ROWS[name]
    assert 8 * cfg.train_dataloader.batch_size == row.batch
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=row.batch)


@pytest.mark.parametrize('name', [name for name in DETECTORS if name.startswith('cascade')])
def test_cascade_heads(name):
    model = load(name).model
    for head in model.roi_head.bbox_head:
        assert (head.num_shared_convs, head.num_shared_fcs, head.norm_cfg.type) == (4, 1, 'SyncBN')
        assert (head.loss_bbox.type, head.loss_bbox.loss_weight) == ('GIoULoss', 10.0)
    assert model.rpn_head.loss_bbox == dict(type='SmoothL1Loss', beta=1 / 9, loss_weight=1.0)
    assert model.train_cfg.rpn_proposal.max_per_img == 2000
    assert [stage.assigner.pos_iou_thr for stage in model.train_cfg.rcnn] == [0.5, 0.6, 0.7]


def test_retinanet_has_no_unused_parameters():
    from mmdet.testing import demo_mm_inputs

    cfg, model, _ = build('retinanet_rmt-t_fpn_amp-1x_coco', 'cpu')
    assert cfg.model.neck.add_extra_convs == 'on_input'
    assert [4 * 2**i for i in cfg.model.backbone.out_indices] == [8, 16, 32]  # FPN starts at stride 8
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.eval()  # BatchNorm cannot train on a map of one pixel
    batch = model.data_preprocessor(demo_mm_inputs(1, [[3, 64, 64]], num_classes=80), True)
    losses = model(**batch, mode='loss')
    model.parse_losses(losses)[0].backward()
    assert [name for name, param in model.named_parameters() if param.grad is None] == []


@pytest.mark.parametrize('name', sorted(set(CONFIGS) - set(ROWS)))
def test_other_configs_build(name):
    cfg, model, optimizer = build(name)
    assert set(groups_by_name(model, optimizer)) == {name for name, _ in model.named_parameters()}
    assert cfg.auto_scale_lr.base_batch_size % cfg.train_dataloader.batch_size == 0


def test_layer_decay():
    name = 'mask-rcnn_rmt-s_fpn_amp-1x-layer-decay_coco'
    _, model, optimizer = build(name)
    groups = groups_by_name(model, optimizer)
    plain = {param: group for param, group in groups_by_name(*build('mask-rcnn_rmt-s_fpn_amp-1x_coco')[1:]).items()}
    num_layers = sum(model.backbone.arch.depths) + 2

    def rate(parameter):
        return groups[parameter]['lr'] / plain[parameter]['lr']

    assert rate('backbone.stem.0.weight') == pytest.approx(0.9 ** (num_layers - 1))
    assert rate('backbone.stages.0.0.cpe.weight') == pytest.approx(0.9 ** (num_layers - 2))
    assert rate('backbone.stages.3.3.ffn.fc2.weight') == pytest.approx(0.9)
    assert rate('backbone.downsamples.2.conv.weight') == rate('backbone.stages.3.0.cpe.weight')
    assert rate('neck.lateral_convs.0.conv.weight') == rate('roi_head.bbox_head.fc_cls.bias') == 1
    for parameter, group in groups.items():
        assert group['weight_decay'] == plain[parameter]['weight_decay'], parameter


def test_layer_decay_in_the_other_libraries():
    pytest.importorskip('mmpretrain')
    segmentor = load('rmt-tiny_fpn_8xb2-80k_ade20k-512x512').model
    classifier = dict(
        type='mmpretrain.ImageClassifier',
        data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor'),
        backbone=dict(type='RMT', arch='tiny', out_indices=(3,), out_norm=False),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=10, in_channels=512),
    )
    for model, head in ((segmentor, 'decode_head.conv_seg.weight'), (classifier, 'head.fc.weight')):
        model = MODELS.build(model)
        wrapper = build_optim_wrapper(
            model,
            dict(
                constructor='LayerDecayOptimWrapperConstructor',
                optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
                paramwise_cfg=dict(layer_decay_rate=0.8, custom_keys={'head': dict(lr_mult=10)}),
            ),
        )
        groups = groups_by_name(model, wrapper.optimizer)
        assert groups['backbone.stem.0.weight']['lr'] == pytest.approx(1e-3 * 0.8**15)  # 14 blocks below the head
        assert groups['backbone.stages.3.1.ffn.fc2.weight']['lr'] == pytest.approx(8e-4)
        assert groups[head]['lr'] == pytest.approx(1e-2)


def test_layer_decay_refuses():
    optimizer = dict(optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05))
    for paramwise_cfg in (None, dict(layer_decay_rate=0), dict(layer_decay_rate=1.5), dict(layer_decay_rate='0.9')):
        with pytest.raises(ValueError, match='layer_decay_rate'):
            rmt_mm.LayerDecayOptimWrapperConstructor(optimizer, paramwise_cfg)
    with pytest.raises(TypeError, match='Linear has none'):
        rmt_mm.LayerDecayOptimWrapperConstructor(optimizer, dict(layer_decay_rate=0.9))(nn.Linear(2, 2))


def test_sizes_are_those_of_the_package():
    assert TINY.arch in rmt_mm.arch.ARCHS
    assert {row.size.arch for row in ROWS.values()} == set(rmt_mm.arch.ARCHS) - {'deit-small'}  # a classifier alone


def test_config_by_name(root):
    path = str(root / 'configs/segmentation/rmt-tiny_fpn_8xb2-80k_ade20k-512x512.py')
    for name in (
        'rmt-tiny_fpn_8xb2-80k_ade20k-512x512',
        'rmt-tiny_fpn_8xb2-80k_ade20k-512x512.py',
        'segmentation/rmt-tiny_fpn_8xb2-80k_ade20k-512x512.py',
    ):
        assert rmt_mm.get_config_path(name) == path
    with pytest.raises(FileNotFoundError, match='did you mean rmt-tiny_fpn_8xb2-80k'):
        rmt_mm.get_config_path('rmt-tiny_fpn_80k_ade20k-512x512')
    assert rmt_mm.list_configs('mask-rcnn_rmt-l_*') == [
        'mask-rcnn_rmt-l_fpn_amp-1x_coco',
        'mask-rcnn_rmt-l_fpn_amp-ms-crop-3x_coco',
    ]
    assert not any('runtime' in name for name in rmt_mm.list_configs())
    with pytest.raises(FileNotFoundError, match="no config 'cls_runtime'"):  # a base is not a config
        rmt_mm.get_config_path('cls_runtime')


def test_every_package_is_installed(root):
    setup = configparser.ConfigParser()
    setup.read(root / 'setup.cfg')
    found = {'.'.join(path.parent.relative_to(root).parts) for path in root.glob('rmt_mm/**/__init__.py')}
    assert set(setup['options']['packages'].split()) == found | {'rmt_mm.configs'}
