"""The check of the installed stack, and what torch.load is allowed to read."""

import configparser
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from rmt_mm.compat import DISTRIBUTIONS, allow_own_checkpoints, check_stack, find_stack_problem
from rmt_mm.checkpoints.safe.unpickler import safe_globals

from support import ROOT

GOOD = dict(
    mmcv=('mmcv', '2.1.0'),
    mmengine=('mmengine', '0.10.7'),
    mmdet=('mmdet', '3.3.0'),
    mmseg=('mmsegmentation', '1.2.2'),
    mmpretrain=('mmpretrain', '1.2.0'),
)


def test_this_stack_works():
    check_stack()


@pytest.mark.parametrize(
    'change',
    [
        {},
        dict(mmcv=('mmcv-lite', '2.1.0'), mmdet=None, mmseg=None, mmpretrain=None),
        dict(
            mmcv=('onedl-mmcv', '2.3.6'), mmengine=('onedl-mmengine', '0.10.12'), mmdet=('onedl-mmdetection', '3.5.1')
        ),
    ],
)
def test_stacks_that_work(change):
    assert find_stack_problem({k: v for k, v in {**GOOD, **change}.items() if v}) is None


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(mmcv=('mmcv-full', '1.7.2')), ['mmcv-full 1.7.2', 'mmcv >= 2.0', 'pip uninstall -y mmcv-full']),
        (dict(mmcv=('mmcv', '1.7.0')), ['mmcv 1.7.0', 'mmcv >= 2.0', 'pip install']),
        (dict(mmdet=('mmdet', '2.28.2')), ['mmdet 2.28.2', 'mmdet >= 3.3.0', 'pip install "mmdet>=3.3.0"']),
        (dict(torch=('torch', '2.0.1+cpu')), ['torch 2.0.1+cpu', 'torch >= 2.1', 'pip install "torch>=2.1"']),
        (dict(mmengine=('onedl-mmengine', '0.10.7')), ['mmengine >= 0.10.12', 'pip install "onedl-mmengine>=0.10.12"']),
        (dict(mmcv=('mmcv', '2.2.0')), ['mmdet 3.3.0', 'mmcv 2.2.0', '< 2.2.0', 'pip install "mmcv>=2.0.0,<2.2.0"']),
        (dict(mmcv=None), ['needs mmcv and mmengine', 'pip install']),
    ],
)
def test_stacks_that_cannot_work_get_one_sentence(change, words):
    problem = find_stack_problem({k: v for k, v in {**GOOD, **change}.items() if v})
    assert '\n' not in problem
    assert all(word in problem for word in words), problem


def test_what_is_wanted_is_what_setup_cfg_says():
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    lines = [*setup['options']['install_requires'].split(), *setup['options.extras_require']['openmmlab'].split()]
    wanted = {line.partition('>')[0]: line.partition('>=')[2].partition(',')[0] for line in lines if '>=' in line}
    assert {'torch', 'mmcv', 'mmengine', 'mmdet', 'mmsegmentation', 'mmpretrain'} <= wanted.keys()
    for package, (distribution, *_) in DISTRIBUTIONS.items():
        good = find_stack_problem({**GOOD, package: (distribution, wanted[distribution])})
        bad = find_stack_problem({**GOOD, package: (distribution, '0.0.1')})
        assert good is None and f'{package} >= {wanted[distribution]},' in bad


def test_mmengine_checkpoints_can_be_read_safely(tmp_path):
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save(dict(message_hub=dict(loss=buffer, best=np.float64(3.0))), tmp_path / 'own.pth')
    allow_own_checkpoints()
    loaded = torch.load(tmp_path / 'own.pth', weights_only=True)['message_hub']
    assert loaded['loss'].current() == 2.0 and loaded['best'] == 3.0


class Sneaky:
    """Unpickled, it would look up an attribute of an object that torch or this package allows."""

    def __init__(self, owner, name):
        self.asked = owner, name

    def __reduce__(self):
        return getattr, self.asked


@pytest.mark.parametrize(
    'owner, name',
    [
        (HistoryBuffer, '__init__'),
        (HistoryBuffer, '__globals__'),
        (HistoryBuffer, 'register_statistics'),
        (HistoryBuffer, 'update'),
        (np.ndarray, 'tofile'),
        (np.dtype, '__class__'),
        (torch.Tensor, 'map_'),
        (torch.nn.Parameter, '__class__'),
        (torch.Size, '__subclasses__'),
        ('', 'format'),
        (None, '__doc__'),
    ],
)
def test_the_allowance_reaches_no_further(owner, name, tmp_path):
    """Attributes of nothing but a HistoryBuffer's statistics; the owners themselves may be read."""
    allow_own_checkpoints()
    torch.save(dict(meta=Sneaky(HistoryBuffer, 'mean')), tmp_path / 'good.pth')
    assert torch.load(tmp_path / 'good.pth', weights_only=True)['meta'] is HistoryBuffer.mean
    torch.save(dict(meta=Sneaky(owner, name)), tmp_path / 'sneaky.pth')
    with pytest.raises(pickle.UnpicklingError, match='attribute'):
        torch.load(tmp_path / 'sneaky.pth', weights_only=True)


def test_import_and_backbone_need_no_library_and_no_compiled_operator():
    code = (
        "import sys, rmt_mm; rmt_mm.RMT('tiny'); "
        "print(*[m for m in ('mmdet', 'mmseg', 'mmpretrain', 'mmcv.ops', 'mmcv._ext') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == [], done.stdout + done.stderr


def test_each_name_has_one_meaning_while_mmengine_loads():
    """torch keeps its list in a set: of two entries of one name, chance would choose."""
    from mmengine.runner import checkpoint

    theirs = checkpoint.get_torch_safe_globals() if hasattr(checkpoint, 'get_torch_safe_globals') else []
    entries = {*safe_globals(), *theirs}
    names = [e[1] if isinstance(e, tuple) else f'{e.__module__}.{e.__qualname__}' for e in entries]
    assert sorted(names) == sorted(set(names))
