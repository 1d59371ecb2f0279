"""Every published row is a config that, all inherited, is the published model and recipe; and every config builds."""
import configparser
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

DETECTORS = [name for name in ROWS if name.endswith('coco')]
SEGMENTORS = [name for name in ROWS if name.endswith('ade20k-512x512')]
CONFIGS = [name for name in rmt_mm.list_configs() if Config.fromfile(rmt_mm.get_config_path(name)).get('default_scope')
           in ('mmdet', 'mmseg')]


def load(name):
    cfg = Config.fromfile(rmt_mm.get_config_path(name))
    init_default_scope(cfg.default_scope)
    return cfg


def build(name):
    """Build a config's model and its optimizer, without the AMP wrapper, which wants a GPU."""
    cfg = load(name)
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
    norm_parameters = {f'{prefix}.{name}' for prefix, module in model.named_modules() if isinstance(module, norms)
                       for name, _ in module.named_parameters(recurse=False)}
    groups = groups_by_name(model, optimizer)

    assert isinstance(optimizer, torch.optim.AdamW)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    for parameter, group in groups.items():
        exempt = (row.exempt != 'nothing' and 'norm' in parameter) or \
                 (row.exempt == 'names and norms' and parameter in norm_parameters)
        assert group['weight_decay'] == (0 if exempt else row.weight_decay), parameter
        assert group['lr'] == row.lr and group['betas'] == (0.9, 0.999), parameter
    # The stem's norms do not carry the word, here as there, and are told apart from the others.
    assert groups['backbone.stem.1.weight']['weight_decay'] == \
        (0 if row.exempt == 'names and norms' else row.weight_decay)

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


@pytest.mark.parametrize('name', DETECTORS)
def test_detection_recipe(name):
    cfg, row = load(name), ROWS[name]
    warm_up, steps = cfg.param_scheduler
    assert cfg.train_cfg.max_epochs == steps.end == row.length
    assert steps.type == 'MultiStepLR' and steps.by_epoch and steps.gamma == 0.1
    assert steps.milestones == {12: [8, 11], 36: [27, 33]}[row.length]
    assert (warm_up.type, warm_up.start_factor, warm_up.begin, warm_up.end, warm_up.by_epoch) == \
        ('LinearLR', 0.001, 0, 500, False)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert 'loss_scale' not in cfg.optim_wrapper and 'clip_grad' not in cfg.optim_wrapper

    masks = not name.startswith('retinanet')
    metrics = ['bbox', 'segm'] if masks else 'bbox'
    assert cfg.val_evaluator.metric == cfg.test_evaluator.metric == metrics
    pipeline = cfg.train_dataloader.dataset.pipeline
    assert pipeline[1].get('with_mask', False) == masks and pipeline[1].with_bbox
    flip, = (step for step in pipeline if step.type == 'RandomFlip')
    assert flip.prob == 0.5
    if row.length == 12:
        resize, = (step for step in pipeline if step.type == 'Resize')
        assert tuple(resize.scale) == (1333, 800) and resize.keep_ratio
    else:
        scales = [(short, 1333) for short in (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)]
        (plain, ), (before, crop, after) = next(s for s in pipeline if s.type == 'RandomChoice').transforms
        for step in (plain, before, after):
            assert step.type == 'RandomChoiceResize' and step.keep_ratio
            assert [tuple(s) for s in step.scales] == \
                ([(400, 1333), (500, 1333), (600, 1333)] if step is before else scales)
        assert (crop.type, crop.crop_type, tuple(crop.crop_size)) == ('RandomCrop', 'absolute_range', (384, 600))
    test_resize = cfg.test_dataloader.dataset.pipeline[1]
    assert test_resize.type == 'Resize' and tuple(test_resize.scale) == (1333, 800) and test_resize.keep_ratio


@pytest.mark.parametrize('name', SEGMENTORS)
def test_segmentation_recipe(name):
    cfg, row = load(name), ROWS[name]
    upernet = 'upernet' in name
    *warm_up, poly = cfg.param_scheduler
    assert cfg.train_cfg.type == 'IterBasedTrainLoop' and cfg.train_cfg.max_iters == poly.end == row.length
    assert poly.type == 'PolyLR' and not poly.by_epoch
    assert (poly.power, poly.eta_min) == ((1.0, 0) if upernet else (0.9, 1e-6))
    if upernet:
        (warm_up, ) = warm_up
        assert (warm_up.type, warm_up.start_factor, warm_up.begin, warm_up.end, warm_up.by_epoch) == \
            ('LinearLR', 1e-6, 0, 1500, False)
        assert poly.begin == 1500
        assert cfg.optim_wrapper.type == 'AmpOptimWrapper' and cfg.optim_wrapper.loss_scale == 512.
        assert cfg.model.decode_head.channels == 512
        auxiliary = cfg.model.auxiliary_head
        assert (auxiliary.type, auxiliary.in_index, auxiliary.channels, auxiliary.loss_decode.loss_weight) == \
            ('FCNHead', 2, 256, 0.4)
        assert auxiliary.dropout_ratio == 0.1
    else:
        assert warm_up == [] and poly.begin == 0
        assert cfg.optim_wrapper.type == 'OptimWrapper'
        assert cfg.model.neck.out_channels == 256 and cfg.model.decode_head.channels == 128
        assert cfg.model.get('auxiliary_head') is None
    head = cfg.model.decode_head
    assert head.dropout_ratio == 0.1 and head.num_classes == 150 and head.norm_cfg.type == 'SyncBN'
    assert tuple(cfg.model.data_preprocessor.size) == (512, 512)

    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert tuple(steps['RandomResize'].scale) == (2048, 512) and tuple(steps['RandomResize'].ratio_range) == (0.5, 2.0)
    assert tuple(steps['RandomCrop'].crop_size) == (512, 512) and steps['RandomCrop'].cat_max_ratio == 0.75
    assert steps['RandomFlip'].prob == 0.5 and 'PhotoMetricDistortion' in steps
    assert cfg.model.test_cfg.mode == 'whole'
    assert tuple(cfg.test_dataloader.dataset.pipeline[1].scale) == (2048, 512)


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


def test_mask_rcnn_assigner():
    for name in DETECTORS:
        if name.startswith('mask-rcnn'):
            assert load(name).model.train_cfg.rcnn.assigner.match_low_quality is True


def test_retinanet_has_no_unused_parameters():
    from mmdet.testing import demo_mm_inputs
    cfg, model, _ = build('retinanet_rmt-t_fpn_amp-1x_coco')
    assert cfg.model.neck.add_extra_convs == 'on_input'
    assert [4 * 2**i for i in cfg.model.backbone.out_indices] == [8, 16, 32]  # FPN starts at stride 8
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.eval()  # a map of one pixel has no variance
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

    assert rate('backbone.stem.0.weight') == pytest.approx(0.9**(num_layers - 1))
    assert rate('backbone.stages.0.0.cpe.weight') == pytest.approx(0.9**(num_layers - 2))
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
        backbone=dict(type='RMT', arch='tiny', out_indices=(3, ), out_norm=False),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=10, in_channels=512))
    for model, head in ((segmentor, 'decode_head.conv_seg.weight'), (classifier, 'head.fc.weight')):
        model = MODELS.build(model)
        wrapper = build_optim_wrapper(model, dict(
            constructor='LayerDecayOptimWrapperConstructor', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
            paramwise_cfg=dict(layer_decay_rate=0.8, custom_keys={'head': dict(lr_mult=10)})))  # yapf: disable
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
    assert {row.size.arch for row in ROWS.values()} == set(rmt_mm.arch.ARCHS)


def test_config_by_name(root):
    path = str(root / 'configs/segmentation/rmt-tiny_fpn_8xb2-80k_ade20k-512x512.py')
    for name in ('rmt-tiny_fpn_8xb2-80k_ade20k-512x512', 'rmt-tiny_fpn_8xb2-80k_ade20k-512x512.py',
                 'segmentation/rmt-tiny_fpn_8xb2-80k_ade20k-512x512.py'):
        assert rmt_mm.get_config_path(name) == path
    with pytest.raises(FileNotFoundError, match='did you mean rmt-tiny_fpn_8xb2-80k'):
        rmt_mm.get_config_path('rmt-tiny_fpn_80k_ade20k-512x512')
    assert rmt_mm.list_configs('mask-rcnn_rmt-l_*') == [
        'mask-rcnn_rmt-l_fpn_amp-1x_coco', 'mask-rcnn_rmt-l_fpn_amp-ms-crop-3x_coco'
    ]
    assert not any('runtime' in name for name in rmt_mm.list_configs())


def test_every_package_is_installed(root):
    setup = configparser.ConfigParser()
    setup.read(root / 'setup.cfg')
    found = {'.'.join(path.parent.relative_to(root).parts) for path in root.glob('rmt_mm/**/__init__.py')}
    assert set(setup['options']['packages'].split()) == found | {'rmt_mm.configs'}
