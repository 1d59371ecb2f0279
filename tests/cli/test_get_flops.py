"""tools/get_flops.py on configs of every kind, and on models that do not fit together."""

import json
import runpy
import sys

import pytest

from support import ROOT
from support.archs import LEAST_ARCH

PURE_PYTHON = f"""
from mmpretrain.models import GlobalAveragePooling, ImageClassifier, LinearClsHead
from rmt_mm import RMT
default_scope = None
model = dict(
    type=ImageClassifier, backbone=dict(type=RMT, arch={LEAST_ARCH}), neck=dict(type=GlobalAveragePooling),
    head=dict(type=LinearClsHead, num_classes=2, in_channels=32))
"""
NO_NECK = f"""
default_scope = 'mmpretrain'
custom_imports = dict(imports=['rmt_mm'])
model = dict(
    type='ImageClassifier', backbone=dict(type='RMT', arch={LEAST_ARCH}),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=32))
"""


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['get_flops.py', *map(str, args)])
    runpy.run_path(str(ROOT / 'tools/get_flops.py'), run_name='__main__')


def test_pure_python_config(monkeypatch, capsys, tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(PURE_PYTHON)
    run(monkeypatch, path, '--json')
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report['shape'] == [224, 224] and report['params'] - report['params_backbone'] == 2 * 32 + 2


def test_config_by_name(monkeypatch, capsys):
    run(monkeypatch, 'rmt-tiny_8xb128_in1k', '--json')
    assert json.loads(capsys.readouterr().out.splitlines()[-1])['params'] == 14_334_216


@pytest.mark.parametrize(
    'text, sentence',
    [
        (NO_NECK, "set model.neck={'type': 'GlobalAveragePooling'}"),
        # A head with a convention that the check does not know.
        (
            NO_NECK.replace('LinearClsHead', 'CSRAClsHead').replace(
                'in_channels=32', 'in_channels=9, num_heads=1, lam=0.1'
            ),
            'does not run on an image of 224 x 224',
        ),
        (NO_NECK.replace('LinearClsHead', 'NoHead'), 'NoHead'),
        ('default_scope = None', 'has no model'),
    ],
)
def test_models_that_do_not_fit(monkeypatch, tmp_path, text, sentence):
    path = tmp_path / 'config.py'
    path.write_text(text)
    with pytest.raises(SystemExit, match='^error: ') as caught:
        run(monkeypatch, path)
    assert sentence in str(caught.value)
