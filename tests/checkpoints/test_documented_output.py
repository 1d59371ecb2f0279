"""The logs and reports that docs/checkpoints.md shows are those that are printed."""

import re

import pytest
import torch
from mmengine.logging import MMLogger

from rmt_mm import RMT
from rmt_mm.arch import ARCHS
from rmt_mm.checkpoints.official_names import official_backbone_shapes, position_buffers
from rmt_mm.checkpoints.shapes import classifier
from rmt_mm.tools.commands import rmt_to_mm

from support import ROOT
from support.official_files import save_classifier


def documented(lead):
    """Return the block behind a line that starts with ``lead``."""
    page = (ROOT / 'docs/checkpoints.md').read_text()
    match = re.search(rf'^{re.escape(lead)}[^`]*^```\n(.*?)^```', page, re.MULTILINE | re.DOTALL)
    assert match, lead
    return match.group(1)


@pytest.fixture
def official(tmp_path, monkeypatch):
    """Return the path of the authors' RMT-S, as the docs name it, with zeros for weights."""
    arch = ARCHS['small']
    shapes = {**official_backbone_shapes(arch, out_norms=False), **classifier(arch.embed_dims, 1000)}
    state_dict = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'checkpoints').mkdir()
    return save_classifier('checkpoints/RMT_S.pth', {**state_dict, **position_buffers(arch)}, average=0)


def test_log_of_a_detector(official, capsys):
    MMLogger.get_instance('documented', logger_name='documented')
    RMT('small', init_cfg=dict(type='Pretrained', checkpoint=official)).init_weights()
    log = re.search(r'RMT loaded.*\n(  .*\n)*', capsys.readouterr().out)
    assert log and log.group() == documented('The log of a detector')


def test_report_of_the_converter(official, capsys):
    rmt_to_mm.main([official, 'checkpoints/rmt-s.pth'])
    digits = re.compile('sha256 [0-9a-f]{64}')
    printed = digits.sub('sha256 30d5ccad...', capsys.readouterr().out)
    assert printed == documented('The converter recognises')


def test_origin_of_a_converted_file(official, capsys):
    rmt_to_mm.main([official, 'checkpoints/rmt-s.pth'])
    page = (ROOT / 'docs/checkpoints.md').read_text()
    code, shown = re.search(r'^>>> (.*)\n([^`]*)```', page, re.MULTILINE).groups()
    origin, shown = eval(code, dict(torch=torch)), eval(shown)
    assert origin.pop('source_sha256')[:8] != '' and shown.pop('source_sha256') == '30d5ccad...'
    assert origin == shown
