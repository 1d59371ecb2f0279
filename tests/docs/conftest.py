"""The folder in which the commands and the Python of the pages are run: a checkout with small data and models."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from support import ROOT
from support.scripts import run_script
from support.work_dirs import make_classifier

SHORT = """_base_ = {base!r}
train_cfg = dict(max_epochs=1, val_interval=1)
param_scheduler = []
train_dataloader = dict(num_workers=0, persistent_workers=False, batch_size=2)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
"""


@pytest.fixture(scope='session')
def place(tmp_path_factory):
    """Return the folder, with what most commands need."""
    folder = tmp_path_factory.mktemp('reader')
    for name in ('tools', 'configs'):
        (folder / name).symlink_to(ROOT / name)
    make = 'tools/dataset_converters/make_digits.py data/digits --train 2 --val 2 --size 128 --renderings 1'
    done = run_script(*make.split(), cwd=folder)
    assert done.returncode == 0, done.stderr
    for digit in (folder / 'data/digits/imagenet').glob('*/*'):
        for image in sorted(digit.iterdir())[1:]:
            image.unlink()
    (folder / 'photos').mkdir()
    picture = folder / 'data/digits/coco/val2017/000000000001.jpg'
    (folder / 'photos/scene.jpg').write_bytes(picture.read_bytes())
    _write_model('mmpretrain', 'classification/rmt-digits', folder / 'classifier.py', folder / 'classifier.pth')
    make_classifier(folder / 'made').rename(folder / 'reported')
    return folder


@pytest.fixture(scope='session')
def demo(place):
    """Add the detector of `make demo`, of random weights."""
    weights = place / 'work_dirs/demo/epoch_4.pth'
    weights.parent.mkdir(parents=True)
    _write_model('mmdet', 'detection/mask-rcnn_rmt-mini_fpn_4e_digits', place / 'detector.py', weights)
    (weights.parent / 'last_checkpoint').write_text(str(weights))


def _write_model(scope, name, config, weights):
    """Write a short training of one of our configs, and a model of it."""
    base = str(ROOT / f'configs/{name}.py')
    config.write_text(SHORT.format(base=base))
    pytest.importorskip(f'{scope}.utils').register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope(scope):
        torch.manual_seed(0)
        model = MODELS.build(Config.fromfile(base).model)
    meta = dict(dataset_meta=dict(classes=tuple('0123456789')))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), weights)
