"""Every config trains and is evaluated from the command line, on a few digit scenes in the layouts of COCO and ADE20K.

Models are complete, images are small: the tests show that nothing is missing or misspelt between a config and its
library, not that a model learns.
"""

import json
import os
import subprocess
import sys

import pytest
from mmengine.config import Config

import rmt_mm

from support import ROOT
from support.miniature import call, make_data, shorten

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CONFIGS = [name for name in rmt_mm.list_configs() if name.endswith(('_coco', '_ade20k-512x512'))]
# Settings for small images, whose feature maps have fewer places than the config has queries.
EXTRA = {'dino-4scale_rmt-t_8xb2-12e_coco': {'model.num_queries': 50, 'model.test_cfg.max_per_img': 50}}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp('data') / 'digits')


def miniature(name, data, folder):
    """Write a config like the named one, but small and short, and return its path."""
    cfg = Config.fromfile(rmt_mm.get_config_path(name))
    shorten(cfg, data)
    cfg.merge_from_dict(EXTRA.get(name, {}))
    path = folder / f'{name}.py'
    cfg.dump(path)
    return path


@pytest.mark.parametrize('name', CONFIGS)
def test_trains_and_evaluates(name, data, tmp_path):
    config, work_dir = miniature(name, data, tmp_path), tmp_path / 'work'
    done = call('tools/train.py', config, '--work-dir', work_dir)
    assert 'loss: ' in done.stdout and 'loss: nan' not in done.stdout
    (checkpoint,) = work_dir.glob('*_[0-9]*.pth')
    # Test with the trained weights alone, as a user would load them.
    shown = tmp_path / 'shown'
    tested = call('tools/test.py', config, checkpoint, '--work-dir', tmp_path / 'test', '--show-dir', shown)
    assert ('bbox_mAP' if name.endswith('_coco') else 'mIoU') in tested.stdout
    assert len([p for p in shown.rglob('*') if p.suffix in ('.jpg', '.png')]) == 2, 'a picture an image'
    checkpoint.unlink()  # L's has more than a gigabyte


@pytest.mark.parametrize('name', ['retinanet_rmt-t_fpn_amp-1x_coco', 'rmt-tiny_fpn_8xb2-80k_ade20k-512x512'])
def test_time_augmentation(name, data, tmp_path):
    config, work_dir = miniature(name, data, tmp_path), tmp_path / 'work'
    call('tools/train.py', config, '--work-dir', work_dir)
    (checkpoint,) = work_dir.glob('*_[0-9]*.pth')
    tested = call('tools/test.py', config, checkpoint, '--tta', '--work-dir', tmp_path / 'test')
    assert ('bbox_mAP' if name.endswith('_coco') else 'mIoU') in tested.stdout


def test_two_processes_on_the_cpu(data, tmp_path):
    """Train in two processes, with SyncBN in the config, and the learning rate scaled to their common batch."""
    name = 'rmt-tiny_upernet_8xb2-amp-160k_ade20k-512x512'
    config, work_dir = miniature(name, data, tmp_path), tmp_path / 'work'
    env = dict(os.environ, PYTHON=sys.executable, PORT='29631', CUDA_VISIBLE_DEVICES='')
    command = [
        'bash',
        ROOT / 'tools/dist_train.sh',
        config,
        '2',
        '--work-dir',
        work_dir,
        '--auto-scale-lr',
        '--cfg-options',
        'default_hooks.logger.interval=1',
        'param_scheduler.0.start_factor=1.0',
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (record,) = work_dir.glob('*/vis_data/scalars.json')
    first = json.loads(record.read_text().splitlines()[0])
    assert first['lr'] == pytest.approx(6e-5 * 2 * 2 / 16)
    assert (work_dir / 'iter_2.pth').is_file()


def test_wrong_class_count(data, tmp_path):
    config = miniature('retinanet_rmt-t_fpn_amp-1x_coco', data, tmp_path)
    done = call(
        'tools/train.py', config, '--work-dir', tmp_path, '--cfg-options', 'model.bbox_head.num_classes=20', fails=True
    )
    assert 'model.bbox_head.num_classes is 20' in done.stderr and '80 classes (person, bicycle' in done.stderr


def test_empty_data(data, tmp_path):
    config = miniature('retinanet_rmt-t_fpn_amp-1x_coco', data, tmp_path)
    done = call(
        'tools/train.py',
        config,
        '--work-dir',
        tmp_path,
        '--cfg-options',
        'train_dataloader.dataset.filter_cfg.min_size=500',
        fails=True,
    )
    assert 'train_dataloader: the data set is empty' in done.stderr
