"""Configs by name in the libraries' own functions and inferencers."""

import importlib

import numpy as np
import pytest
import yaml
from mmengine.registry import init_default_scope

import rmt_mm

from support import ROOT

mmpretrain = pytest.importorskip('mmpretrain')
METAFILE = yaml.safe_load((ROOT / 'configs/classification/metafile.yml').read_text())
NAMES = {model['Name'] for model in METAFILE['Models']}


def test_every_classifier_is_listed():
    importlib.import_module('rmt_mm.classification')
    assert set(mmpretrain.list_models('rmt-*')) == NAMES
    assert 'resnet50_8xb32_in1k' in mmpretrain.list_models('resnet50*')  # mmpretrain's own names remain


def test_importing_twice_changes_nothing():
    importlib.reload(importlib.import_module('rmt_mm.classification'))
    assert set(mmpretrain.list_models('rmt-*')) == NAMES


def test_get_model_by_name():
    importlib.import_module('rmt_mm.classification')
    model = mmpretrain.get_model('rmt-tiny_8xb128_in1k', backbone=dict(drop_path_rate=0.0))
    assert isinstance(model.backbone, rmt_mm.RMT) and sum(p.numel() for p in model.parameters()) == 14334216
    assert model._config.filename == rmt_mm.get_config_path('rmt-tiny_8xb128_in1k')


@pytest.mark.parametrize(
    'package, inferencer, name',
    [
        ('mmdet', 'DetInferencer', 'mask-rcnn_rmt-mini_fpn_digits'),
        ('mmseg', 'MMSegInferencer', 'rmt-mini_fpn_digits'),
        ('mmpretrain', 'ImageClassificationInferencer', 'rmt-digits'),
    ],
)
def test_inferencers_take_the_path_of_a_name(package, inferencer, name):
    apis = pytest.importorskip(f'{package}.apis')
    init_default_scope(package)  # as in a process that used another library before
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    infer = getattr(apis, inferencer)(rmt_mm.get_config_path(name), device='cpu')
    assert isinstance(infer.model.backbone, rmt_mm.RMT)
    assert infer(image)
