"""What torch.load may read in a process that imports rmt_mm, and in one that forces safe loading."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from support.scripts import run_script


def run(*args, **options):
    done = subprocess.run([sys.executable, *args], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


REPLACED = """
import sys
import mmcv.cnn, mmengine.runner, torch, torch._weights_only_unpickler

before = {
    (name, key): value
    for name, module in list(sys.modules.items())
    if name.split('.')[0] in ('mmcv', 'mmengine', 'torch')
    for key, value in list(vars(module).items())
    if callable(value)
}
import rmt_mm
print('replaced:', [place for place, value in before.items() if getattr(sys.modules[place[0]], place[1]) is not value])
"""


def test_import_replaces_nothing_of_the_libraries():
    assert 'replaced: []' in run('-c', REPLACED)


CONFIG = """
custom_imports = dict(imports=['rmt_mm'], allow_failed_imports=False)
model = dict(type='Line')
work_dir = 'work'
train_dataloader = dict(
    batch_size=1,
    dataset=dict(type='Numbers'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
)
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
"""
# As the libraries' tools/train.py does it.
TRAIN = """
import sys
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner

@DATASETS.register_module()
class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return dict(inputs=torch.ones(1))

@MODELS.register_module()
class Line(BaseModel):
    def __init__(self, data_preprocessor=None):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.layer(inputs).mean())

cfg = Config.fromfile('config.py')
cfg.resume = 'resume' in sys.argv
cfg.train_cfg.max_epochs = 2 if cfg.resume else 1
runner = Runner.from_cfg(cfg)
runner.train()
print('iterations:', runner.iter, len(runner.message_hub.get_scalar('train/loss').data[0]))
"""


def test_the_libraries_resume_training_with_rmt_mm_among_the_imports_of_the_config(tmp_path):
    (tmp_path / 'config.py').write_text(CONFIG)
    (tmp_path / 'train.py').write_text(TRAIN)
    for args in ((), ('resume',)):
        done = run_script('train.py', *args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    resumed = done.stdout + done.stderr
    assert 'iterations: 4 4' in resumed and 'Falling back' not in resumed


MEANINGS = """
import rmt_mm
from mmengine.runner import checkpoint
from rmt_mm.checkpoints import force_safe_loading
from rmt_mm.checkpoints.safe.unpickler import safe_globals

for stage in (lambda: None, force_safe_loading):
    stage()
    theirs = checkpoint.get_torch_safe_globals() if hasattr(checkpoint, 'get_torch_safe_globals') else []
    entries = {*safe_globals(), *theirs}
    names = [e[1] if isinstance(e, tuple) else f'{e.__module__}.{e.__qualname__}' for e in entries]
    print('twice:', sorted(name for name in names if names.count(name) > 1), 'builtins.getattr' in names)
"""


def test_each_name_has_one_meaning_while_mmengine_loads(tmp_path):
    """torch keeps its list in a set: of two entries of one name, chance would choose."""
    (tmp_path / 'script.py').write_text(MEANINGS)
    done = run_script(tmp_path / 'script.py')
    assert done.stdout.count('twice: [] True') == 2, done.stderr


def test_mmengine_checkpoints_can_be_read_safely(forced, tmp_path):
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save(dict(message_hub=dict(loss=buffer, best=np.float64(3.0))), tmp_path / 'own.pth')
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
def test_the_allowance_reaches_no_further(owner, name, forced, tmp_path):
    """Attributes of nothing but a HistoryBuffer's statistics; the owners themselves may be read."""
    torch.save(dict(meta=Sneaky(HistoryBuffer, 'mean')), tmp_path / 'good.pth')
    assert torch.load(tmp_path / 'good.pth', weights_only=True)['meta'] is HistoryBuffer.mean
    torch.save(dict(meta=Sneaky(owner, name)), tmp_path / 'sneaky.pth')
    with pytest.raises(pickle.UnpicklingError, match='attribute'):
        torch.load(tmp_path / 'sneaky.pth', weights_only=True)
