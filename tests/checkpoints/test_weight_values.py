"""Weights of a type that no layer computes with are refused; NaN and infinite ones are named in a warning."""

import logging

import pytest
import torch

from rmt_mm import RMT
from rmt_mm.arch import ARCHS
from rmt_mm.checkpoints.loading import check_checkpoint_file
from rmt_mm.checkpoints.state_dicts import check_weights
from rmt_mm.errors import CheckpointError
from rmt_mm.tools.commands import rmt_to_mm

from support.official_files import NANO, nano_state_dict, save_classifier

OURS = 'stages.0.0.attn.qkv.weight'


def official(path, change):
    state_dict = nano_state_dict('classification')
    name = next(name for name in state_dict if name.endswith('attn' + '.weight') or name.endswith('q_proj.weight'))
    state_dict[name] = change(state_dict[name])
    return save_classifier(path, state_dict), name


def backbone(path):
    return RMT(NANO._asdict(), init_cfg=dict(type='Pretrained', checkpoint=str(path)))


@pytest.mark.parametrize('kind', ['bool', 'int8', 'uint8', 'int64', 'complex64'])
def test_wrong_types_are_refused(kind, tmp_path):
    path, name = official(tmp_path / 'a.pth', lambda tensor: tensor.to(getattr(torch, kind)))
    with pytest.raises(SystemExit) as exit:
        rmt_to_mm.main([path, str(tmp_path / 'b.pth')])
    assert name in str(exit.value) and kind in str(exit.value) and not (tmp_path / 'b.pth').exists()
    with pytest.raises(CheckpointError, match=f'{name}.*{kind}'):
        backbone(path).init_weights()
    torch.save(dict(state_dict={OURS: torch.ones(2).to(getattr(torch, kind))}), tmp_path / 'ours.pth')
    with pytest.raises(CheckpointError, match=f'ours.pth.*{OURS}.*{kind}'):
        check_checkpoint_file(str(tmp_path / 'ours.pth'))


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_not_finite_weights_are_named(value, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(ARCHS, 'nano', NANO)
    path, name = official(tmp_path / 'a.pth', lambda tensor: torch.full_like(tensor, value))
    rmt_to_mm.main([path, str(tmp_path / 'b.pth')])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if 'warning' in line]
    assert name in line and 'NaN or infinite' in line and '1 tensors' in line
    messages = []
    monkeypatch.setattr(
        'rmt_mm.checkpoints.loading.print_log', lambda text, logger, level=None: messages.append((text, level))
    )
    backbone(path).init_weights()
    assert 'NaN or infinite' in messages.pop()[0]
    check_checkpoint_file(str(tmp_path / 'b.pth'))
    ((text, level),) = messages
    assert 'b.pth: warning: 1 tensors' in text and level == logging.WARNING


def test_other_tensors_may_be_of_any_type():
    finite = {
        'a.weight': torch.ones(2, dtype=torch.float16),
        'a.num_batches_tracked': torch.tensor(1),
        'a.relative_position_index': torch.zeros(2, dtype=torch.int64),
        'a.mask': torch.ones(2, dtype=torch.bool),
    }
    assert check_weights(finite) is None
    assert '1 tensors' in check_weights({**finite, 'b': torch.tensor(float('nan'))})
