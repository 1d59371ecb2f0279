"""Train and test ten of the libraries' own configs, with the backbone swapped by the lines of docs/swap_backbone.md.

Each is trained by its library's tools and by ours, on a few digit scenes, and each tool tests the checkpoint of the
other: losses and metrics are the same.
"""

import json
import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load

from rmt_mm.training.config_search import find_dicts

from support import ROOT
from support.miniature import call, make_data, shorten
from support.swaps import library_config, write_user_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')

CONFIGS = [
    'mmdet/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'mmdet/atss/atss_r50_fpn_1x_coco.py',
    'mmdet/rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'mmdet/yolox/yolox_tiny_8xb8-300e_coco.py',
    'mmdet/detr/detr_r50_8xb2-150e_coco.py',
    'mmdet/mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'mmseg/upernet/upernet_r50_4xb4-80k_ade20k-512x512.py',
    'mmseg/pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py',
    'mmpretrain/resnet/resnet50_8xb32_in1k.py',
]
# Without exp, an untrained head may predict only boxes of no size, which are dropped; COCO's metric needs boxes.
EXTRA = {'mmdet/rtmdet/rtmdet_tiny_8xb32-300e_coco.py': {'model.bbox_head.exp_on_reg': True}}
SELF_SUPERVISED = 'mmpretrain/simsiam/simsiam_resnet50_8xb32-coslr-100e_in1k.py'
# One thread, so that the same computation gives the same numbers; no GPU, since the other tool would use it.
ENV = dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp('data') / 'digits')


def miniature(config, data, folder, **changes):
    """Write a user's config, and a smaller version of it without inheritance; return the latter's path."""
    cfg = Config.fromfile(write_user_config(config, folder))
    shorten(cfg, data, batch_size=10 if cfg.default_scope == 'mmpretrain' else 2)
    for jitter in find_dicts(cfg.train_dataloader, lambda d: d.get('type') == 'ColorJitter'):
        jitter.hue = 0.0  # mmcv 2.1.0 fails under NumPy 2: "Python integer -14 out of bounds for uint8"
    # Our tool seeds each epoch or batch: so must the other, to draw the same numbers.
    cfg.custom_imports.imports.append('rmt_mm.training.seed_hook')
    cfg.custom_hooks = [*cfg.get('custom_hooks', []), dict(type='SeedHook')]
    cfg.merge_from_dict(
        {
            'randomness': dict(seed=0, deterministic=True),
            'default_hooks.logger.interval': 1,
            **EXTRA.get(config, {}),
            **changes,
        }
    )
    path = folder / f'mini_{Path(config).name}'
    cfg.dump(path)
    return path


def tool(library, name):
    """Return a library's own script, or ours."""
    root = ROOT if library == 'rmt_mm' else library_config(f'{library}/x').parents[1]
    return root / f'tools/{name}.py'


def train(library, config, work_dir):
    """Train; return the checkpoint, the losses of the iterations, and the metrics after the last."""
    call(tool(library, 'train'), config, '--work-dir', work_dir, env=ENV)
    (record,) = work_dir.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    (checkpoint,) = work_dir.glob('*_[0-9]*.pth')
    losses = [row['loss'] for row in rows if 'loss' in row]
    return checkpoint, losses, metrics(rows[-1]) if len(rows) > len(losses) else {}


def test(library, config, checkpoint, work_dir):
    """Test; return the metrics, and the scores of all predictions (none for mmseg, whose script saves pictures)."""
    saves = Config.fromfile(config).default_scope != 'mmseg'
    out = ['--out', work_dir / 'out.pkl'] if saves else []
    call(tool(library, 'test'), config, checkpoint, '--work-dir', work_dir, *out, env=ENV)
    (record,) = work_dir.glob('*/*.json')
    predictions = load(work_dir / 'out.pkl') if out else []
    scores = [p['pred_instances']['scores'] if 'pred_instances' in p else p['pred_score'] for p in predictions]
    return metrics(json.loads(record.read_text())), torch.cat(scores) if scores else torch.empty(0)


test.__test__ = False


def metrics(row):
    return {key: value for key, value in row.items() if key not in ('step', 'time', 'data_time', 'iter', 'epoch')}


@pytest.mark.parametrize('config', CONFIGS)
def test_trains_and_is_tested(config, data, tmp_path):
    library = config.split('/')[0]
    path = miniature(config, data, tmp_path)
    theirs, their_losses, their_metrics = train(library, path, tmp_path / 'theirs')
    ours, our_losses, our_metrics = train('rmt_mm', path, tmp_path / 'ours')
    assert len(our_losses) == 2 and all(map(math.isfinite, our_losses))
    assert our_losses == pytest.approx(their_losses, rel=1e-4)
    assert our_metrics == pytest.approx(their_metrics, abs=1e-3) and our_metrics

    tested_by_us, our_scores = test('rmt_mm', path, theirs, tmp_path / 'test_ours')
    tested_by_them, their_scores = test(library, path, ours, tmp_path / 'test_theirs')
    assert tested_by_us == pytest.approx(their_metrics, abs=1e-3)
    assert tested_by_them == pytest.approx(our_metrics, abs=1e-3)
    torch.testing.assert_close(our_scores, their_scores, rtol=1e-3, atol=1e-4)
    assert library == 'mmseg' or len(our_scores) > 0


def test_self_supervised_to_detection(data, tmp_path):
    """Train SimSiam with either script, then a detector from its backbone, which has only the last output's norm."""
    path = miniature(SELF_SUPERVISED, data, tmp_path)
    _, their_losses, _ = train('mmpretrain', path, tmp_path / 'theirs')
    checkpoint, our_losses, _ = train('rmt_mm', path, tmp_path / 'ours')
    assert len(our_losses) == 2 and all(map(math.isfinite, our_losses))
    assert our_losses == pytest.approx(their_losses, rel=1e-4)

    init = dict(type='Pretrained', checkpoint=str(checkpoint), prefix='backbone.')
    path = miniature(
        CONFIGS[0],
        data,
        tmp_path,
        **{'model.backbone.init_cfg': init, 'train_cfg.max_epochs': 1, 'optim_wrapper.optimizer.lr': 0.0},
    )
    detector, _, _ = train('rmt_mm', path, tmp_path / 'detector')
    backbone, before = backbone_of(detector), backbone_of(checkpoint)
    trained = {name for name in backbone if 'running' not in name and 'num_batches' not in name}  # with lr = 0
    new = {name for name in trained if name not in before}
    assert new == {f'norm{i}.{kind}' for i in range(3) for kind in ('weight', 'bias')}
    assert all(torch.equal(backbone[name], before[name]) for name in trained - new)


def backbone_of(checkpoint):
    # weights_only=False is safe for a file that this test has just written.
    state_dict = torch.load(checkpoint, weights_only=False)['state_dict']
    return {name[len('backbone.') :]: value for name, value in state_dict.items() if name.startswith('backbone.')}


def test_two_processes(data, tmp_path):
    """DistributedDataParallel needs a gradient for each parameter: the documented lines have no unused output."""
    path = miniature('mmdet/atss/atss_r50_fpn_1x_coco.py', data, tmp_path, **{'train_dataloader.batch_size': 1})
    with socket.socket() as free:
        free.bind(('', 0))
        port = str(free.getsockname()[1])
    command = ['bash', ROOT / 'tools/dist_train.sh', path, '2', '--work-dir', tmp_path / 'work']
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=dict(ENV, PYTHON=sys.executable, PORT=port)
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    losses = [float(loss) for loss in re.findall(r'Epoch\(train\).* loss: (\S+)', done.stdout)]
    assert len(losses) == 2 and all(map(math.isfinite, losses)) and (tmp_path / 'work/epoch_1.pth').is_file()
