"""The check of neck and heads around RMT: those that fit pass, others are named with the settings to change."""

import copy
import logging
import sys
import types

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

import rmt_mm
from rmt_mm.arch import resolve_out_indices
from rmt_mm.errors import UsageError
from rmt_mm.tools.cli.model_check import check_backbones, check_model, find_problems
from rmt_mm.training.findings import collect

FOUR = [64, 128, 256, 512]
LEVELS = dict(type='AnchorGenerator', strides=[8, 16, 32, 64, 128], ratios=[1.0], scales=[8])


def detector(kind='RetinaNet', neck=None, head=None, **backbone):
    return dict(type=kind, backbone=dict(type='RMT', **backbone), neck=neck, bbox_head=head)


def fpn(channels, **kwargs):
    return dict(type='FPN', in_channels=channels, out_channels=8, num_outs=5, **kwargs)


def retina(**backbone):
    return detector(head=dict(type='RetinaHead', num_classes=3, in_channels=8, anchor_generator=LEVELS), **backbone)


def segmentor(head, **backbone):
    return dict(type='EncoderDecoder', backbone=dict(type='RMT', **backbone), decode_head=head)


def findings(model, scope='mmdet', **kwargs):
    return collect(check_model(model, scope, **kwargs))


def refusal(model, scope='mmdet'):
    (error,) = findings(model, scope)
    assert error.level == logging.ERROR
    return error.text


def note(model, scope='mmdet', **kwargs):
    (note,) = findings(model, scope, **kwargs)
    assert note.level == logging.WARNING
    return note.text


RTMDET = dict(
    kind='RTMDet',
    head=dict(
        type='RTMDetHead',
        num_classes=3,
        in_channels=8,
        anchor_generator=dict(type='MlvlPointGenerator', offset=0, strides=[8, 16, 32]),
    ),
)
YOLOX = dict(kind='YOLOX', head=dict(type='YOLOXHead', num_classes=3, in_channels=8))  # strides by default
YOLO = dict(type='YOLOV3Neck', num_scales=3, in_channels=[512, 256, 128], out_channels=[8, 8, 8])
DINO = dict(type='ChannelMapper', in_channels=FOUR, out_channels=8, num_outs=5)
FITS = {
    'fpn': retina(neck=fpn(FOUR, start_level=1)),
    'fpn, one int': dict(
        retina(neck=fpn([512], add_extra_convs='on_input'), out_indices=3),
        bbox_head=dict(
            type='RetinaHead', anchor_generator=dict(type='AnchorGenerator', strides=[32, 64, 128, 256, 512])
        ),
    ),
    'negative and unsorted': retina(neck=fpn([128, 256, 512]), out_indices=[-1, 1, 2]),
    'tuple of strides': dict(
        retina(neck=fpn([128, 256, 512]), out_indices=(1, 2, 3)),
        bbox_head=dict(type='RetinaHead', anchor_generator=dict(LEVELS, strides=[(s, s) for s in LEVELS['strides']])),
    ),
    'two necks': retina(neck=[fpn(FOUR, start_level=1), dict(type='BFP', in_channels=8, num_levels=5)]),
    'yolo': detector('YOLOV3', YOLO, dict(type='YOLOV3Head', featmap_strides=[32, 16, 8]), out_indices=(1, 2, 3)),
    'rtmdet': detector(
        neck=dict(type='CSPNeXtPAFPN', in_channels=[128, 256, 512], out_channels=8), out_indices=(1, 2, 3), **RTMDET
    ),
    'yolox': detector(
        neck=dict(type='YOLOXPAFPN', in_channels=[128, 256, 512], out_channels=8), out_indices=(1, 2, 3), **YOLOX
    ),
    'dilated encoder': detector(
        'YOLOF',
        dict(
            type='DilatedEncoder',
            in_channels=512,
            out_channels=8,
            block_mid_channels=8,
            num_residual_blocks=1,
            block_dilations=[2],
        ),
        dict(type='YOLOFHead', anchor_generator=dict(type='AnchorGenerator', strides=[32])),
    ),
    'dino': dict(
        detector(
            'DINO',
            dict(type='ChannelMapper', in_channels=[128, 256, 512], out_channels=8, num_outs=4),
            out_indices=(1, 2, 3),
        ),
        num_feature_levels=4,
    ),
    # SOLOHead's strides are not those of its inputs, and RoIAlign takes the first outputs.
    'two stages': dict(
        detector('MaskRCNN', fpn(FOUR)),
        roi_head=dict(
            bbox_roi_extractor=dict(featmap_strides=[4, 8, 16, 32]), semantic_roi_extractor=dict(featmap_strides=[8])
        ),
        mask_head=dict(type='SOLOHead', strides=[8, 8, 16, 32, 32]),
    ),
}


@pytest.mark.parametrize('name', FITS)
def test_what_fits(name):
    assert findings(FITS[name]) == []


@pytest.mark.parametrize('name', FITS)
def test_the_neck_of_what_fits_is_looked_at(name):
    model = copy.deepcopy(FITS[name])
    first = model['neck'][0] if isinstance(model['neck'], list) else model['neck']
    first['in_channels'] = 7 if isinstance(first['in_channels'], int) else [7] * len(first['in_channels'])
    assert 'neck.in_channels is' in refusal(model)


@pytest.mark.parametrize(
    'model, parts',
    [
        (
            retina(neck=fpn(FOUR, start_level=1), arch='base'),
            ['[80, 160, 320, 512]', "'base'", 'set model.neck.in_channels=[80, 160, 320, 512].'],
        ),
        (
            retina(neck=fpn(FOUR)),
            [
                'strides is [8, 16, 32, 64, 128]',
                '5 with strides [4, 8, 16, 32, 64]',
                'model.backbone.out_indices=(1, 2, 3) and model.neck.in_channels=[128, 256, 512]',
            ],
        ),
        (retina(neck=fpn([128, 256, 512], start_level=1), out_indices=(1, 2, 3)), ['set model.neck.start_level=0']),
        (retina(neck=fpn([256, 512, 1024, 2048], start_level=1)), ['model.neck.in_channels=[64, 128, 256, 512]']),
        (retina(neck=[fpn([1, 2], start_level=1)]), ['set model.neck.0.in_channels=[64, 128, 256, 512].']),
        (
            detector(neck=dict(type='CSPNeXtPAFPN', in_channels=FOUR, out_channels=8), **RTMDET),
            [
                'bbox_head.anchor_generator.strides is [8, 16, 32]',
                '4 with strides [4, 8, 16, 32]',
                'set model.backbone.out_indices=(1, 2, 3) and model.neck.in_channels=[128, 256, 512].',
            ],
        ),
        (
            detector(neck=dict(type='YOLOXPAFPN', in_channels=FOUR, out_channels=8), **YOLOX),
            ['bbox_head.strides is [8, 16, 32]', 'set model.backbone.out_indices=(1, 2, 3)'],
        ),
        (
            detector(
                'YOLOV3',
                dict(type='YOLOV3Neck', num_scales=3, in_channels=[128, 256, 512], out_channels=[8, 8, 8]),
                out_indices=(1, 2, 3),
            ),
            ['set model.neck.in_channels=[512, 256, 128].'],
        ),
        (
            detector('YOLOV3', dict(type='YOLOV3Neck', num_scales=3, in_channels=FOUR, out_channels=[8, 8, 8])),
            ['set model.backbone.out_indices=(1, 2, 3) and model.neck.in_channels=[512, 256, 128].'],
        ),
        (
            dict(detector('DINO', DINO), num_feature_levels=4),
            ['num_feature_levels is 4', 'set model.num_feature_levels=5'],
        ),
        (
            dict(
                detector('MaskRCNN', fpn([128, 256, 512]), out_indices=(1, 2, 3)),
                roi_head=dict(bbox_roi_extractor=dict(featmap_strides=[4, 8, 16, 32])),
            ),
            [
                'roi_head.bbox_roi_extractor.featmap_strides',
                'out_indices=(0, 1, 2, 3) and model.neck.in_channels=[64, 128',
            ],
        ),
        (
            dict(
                detector('Mask2Former'), panoptic_head=dict(type='Mask2FormerHead', in_channels=[256, 512, 1024, 2048])
            ),
            ['set model.panoptic_head.in_channels=[64, 128, 256, 512].'],
        ),
    ],
)
def test_what_does_not_fit(model, parts):
    model = {key: value for key, value in model.items() if value is not None}
    sentence = refusal(model)
    for part in parts:
        assert part in sentence


@pytest.mark.parametrize('indices, stages', [(3, (3,)), ((3, 0), (0, 3)), ([-1, -2], (2, 3)), ((1, 1), (1,))])
def test_out_indices(indices, stages):
    assert resolve_out_indices(indices) == stages == rmt_mm.RMT('tiny', out_indices=indices).out_indices


@pytest.mark.parametrize('indices', [4, (0, -5), 'a', (0.5,), ()])
def test_wrong_out_indices(indices):
    assert 'model.backbone: out_indices' in refusal(retina(neck=fpn(FOUR), out_indices=indices))


PSP = dict(type='PSPHead', in_channels=512, in_index=3)
UPER = dict(type='UPerHead', in_channels=FOUR, in_index=[0, 1, 2, 3])


@pytest.mark.parametrize(
    'model, looked_at',
    [
        (segmentor(PSP), 'in_channels'),
        (segmentor(dict(type='FCNHead', in_channels=512)), 'in_channels'),
        (segmentor(UPER), 'in_channels'),
        (segmentor(dict(PSP, in_index=-1)), 'in_channels'),
        (
            segmentor(dict(type='FCNHead', in_channels=FOUR, in_index=[0, 1, 2, 3], input_transform='resize_concat')),
            'in_channels',
        ),
        (segmentor(dict(type='STDCHead', in_channels=128, in_index=1)), 'in_channels'),
        (segmentor([PSP, dict(type='OCRHead', in_channels=512)]), 'in_channels'),
        (
            dict(
                segmentor(dict(type='FPNHead', in_channels=[8] * 4, in_index=[0, 1, 2, 3])),
                neck=dict(type='FPN', in_channels=FOUR, out_channels=8, num_outs=4),
            ),
            'in_channels',
        ),
        (segmentor(dict(type='Mask2FormerHead', in_channels=FOUR, strides=[4, 8, 16, 32])), 'strides'),
        # MaskFormerHead does not use its strides.
        (segmentor(dict(type='MaskFormerHead', in_channels=FOUR, strides=[4, 8, 16, 32, 64])), 'in_channels'),
    ],
)
def test_segmentors_that_fit(model, looked_at):
    assert findings(model, 'mmseg') == []
    model = copy.deepcopy(model)
    head = model['decode_head'][-1] if isinstance(model['decode_head'], list) else model['decode_head']
    head[looked_at] = 7 if isinstance(head[looked_at], int) else [7] * len(head[looked_at])
    assert f'{looked_at} is {head[looked_at]}' in refusal(model, 'mmseg')


def test_heads_of_other_packages_are_left_alone():
    head = dict(type='HeadOfAStranger', in_channels=7, in_index=9)
    assert findings(segmentor(head), 'mmseg') == []
    assert 'in_index is 9' in refusal(segmentor(dict(head, type='FCNHead')), 'mmseg')


@pytest.mark.parametrize(
    'head, parts',
    [
        (
            dict(PSP, in_channels=2048),
            ['model.decode_head.in_channels is 2048', 'set model.decode_head.in_channels=512.'],
        ),
        (
            [dict(UPER, in_channels=[256, 512, 1024, 2048])],
            ['set model.decode_head.0.in_channels=[64, 128, 256, 512].'],
        ),
        (dict(PSP, in_index=4), ['model.decode_head.in_index is 4, but the outputs [0, 1, 2, 3] of RMT are 4']),
        (dict(type='Mask2FormerHead', in_channels=FOUR, strides=[8, 16, 32, 64]), ['model.decode_head.strides']),
    ],
)
def test_segmentors_that_do_not_fit(head, parts):
    sentence = refusal(segmentor(head), 'mmseg')
    for part in parts:
        assert part in sentence


def test_classifiers():
    model = dict(type='ImageClassifier', backbone=dict(type='RMT'), head=dict(type='LinearClsHead', in_channels=512))
    assert 'takes vectors' in refusal(model, 'mmpretrain')
    pooled = dict(model, neck=dict(type='GlobalAveragePooling'))
    assert findings(pooled, 'mmpretrain') == []
    pooled['head'] = dict(model['head'], in_channels=768)
    assert 'set model.head.in_channels=512' in refusal(pooled, 'mmpretrain')
    pretrained = dict(model, type='SimMIM', neck=dict(type='SimMIMLinearDecoder', in_channels=9))
    assert findings(pretrained, 'mmpretrain') == []


def test_unknown_necks_are_let_through():
    @MODELS.register_module(name='NeckOfAStranger', force=True)
    class Neck(nn.Module):
        def __init__(self, in_channels):
            super().__init__()

        def forward(self, x):
            raise ValueError('only with a second input')

    assert findings(retina(neck=dict(type='NeckOfAStranger', in_channels=[1, 2, 3]))) == []
    # This neck fails with every choice of outputs, so that the outputs may not be the cause.
    assert 'could not be found out' in note(retina(neck=dict(type='RFP', in_channels=FOUR, rfp_steps=2)))


@pytest.mark.parametrize(
    'model, scope, advice',
    [
        (
            retina(neck=fpn(FOUR, start_level=1)),
            'mmdet',
            'model.backbone.out_indices=(1, 2, 3) and '
            'model.neck.in_channels=[128, 256, 512] and model.neck.start_level=0',
        ),
        (segmentor(dict(PSP)), 'mmseg', 'model.backbone.out_indices=(3,) and model.decode_head.in_index=0'),
        (
            dict(segmentor(dict(PSP)), auxiliary_head=dict(type='FCNHead', in_channels=256, in_index=2)),
            'mmseg',
            'model.backbone.out_indices=(2, 3) and model.decode_head.in_index=1 and model.auxiliary_head.in_index=0',
        ),
        (
            dict(
                type='ImageClassifier',
                backbone=dict(type='RMT'),
                neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', in_channels=512),
            ),
            'mmpretrain',
            'model.backbone.out_indices=(3,)',
        ),
        (
            detector('DETR', dict(type='ChannelMapper', in_channels=FOUR, out_channels=8, num_outs=1)),
            'mmdet',
            'model.backbone.out_indices=(3,) and model.neck.in_channels=[512]',
        ),
    ],
)
def test_outputs_that_nobody_uses(model, scope, advice):
    assert findings(model, scope) == []  # harmless in one process
    assert note(model, scope, several_processes=True).endswith(f'Set {advice}.')


def test_no_note_where_all_outputs_are_used():
    detector = retina(neck=fpn([128, 256, 512]), out_indices=(1, 2, 3))
    assert findings(detector, several_processes=True) == []
    assert findings(segmentor(UPER), 'mmseg', several_processes=True) == []


@pytest.mark.parametrize('name', rmt_mm.list_configs())
def test_our_configs_fit_and_use_all_outputs(name):
    cfg = Config.fromfile(rmt_mm.get_config_path(name))
    cfg.launcher = 'pytorch'
    assert collect(find_problems(cfg, name)) == []


def config(kind, **kwargs):
    cfg = Config(dict(default_scope='mmdet', launcher='none', model=retina(neck=fpn(FOUR, start_level=1)), **kwargs))
    cfg.model.backbone.type = kind
    return cfg


class Derived(rmt_mm.RMT):
    """A user's backbone, derived from RMT."""


@pytest.mark.parametrize('kind', [rmt_mm.RMT, Derived, 'rmt_mm.backbone.rmt.RMT', 'rmt_mm.RMT'])
def test_types_that_import_themselves(kind):
    cfg = config(kind)
    assert collect(find_problems(cfg, 'a.py')) == []
    cfg.model.neck.in_channels = [1, 2, 3, 4]
    with pytest.raises(UsageError, match='model.neck.in_channels'):
        check_backbones(cfg, 'a.py')


@pytest.mark.parametrize('kind', ['RMT', 'mmengine.RMT', 'mmdet.RMT'])
def test_names_need_an_import(kind, monkeypatch, capsys):
    (error,) = collect(find_problems(config(kind), 'a.py'))
    assert error.level == logging.ERROR and 'custom_imports' in error.text
    for imports in ('rmt_mm', ['rmt_mm.classification'], ['my_imports']):
        module = types.ModuleType('my_imports')
        module.rmt_mm = rmt_mm
        monkeypatch.setitem(sys.modules, 'my_imports', module)
        assert collect(find_problems(config(kind, custom_imports=dict(imports=imports)), 'a.py')) == []
    # An import that cannot be checked is accepted.
    monkeypatch.setitem(sys.modules, 'my_imports', types.ModuleType('my_imports'))
    check_backbones(config(kind, custom_imports=dict(imports=['my_imports'])), 'a.py')
    assert capsys.readouterr().err.startswith('note: config a.py ')
