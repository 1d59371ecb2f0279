"""Train, test and probe a classifier, predict with it, use it in other tasks, and make token labels to train with."""

import itertools
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip('mmpretrain')

from mmengine.config import Config  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402
from mmengine.runner import CheckpointLoader, Runner  # noqa: E402
from mmpretrain.apis import FeatureExtractor, ImageClassificationInferencer, get_model  # noqa: E402

from rmt_mm import RMT  # noqa: E402
from rmt_mm.classification.label_map import save_label_map  # noqa: E402

from support import ROOT  # noqa: E402
from support.archs import LEAST_ARCH  # noqa: E402

CONFIGS = ROOT / 'configs/classification'
RUNS = itertools.count()


@pytest.fixture(scope='module')
def workplace(tmp_path_factory):
    """Make images of ten classes as stripes, and label maps with the places of the stripes."""
    folder = tmp_path_factory.mktemp('digits')
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for digit in range(10):
            for i in range(2):
                image = rng.integers(0, 100, (64, 64, 3), np.uint8)
                image[:, 6 * digit : 6 * digit + 6] = 255
                path = folder / split / str(digit) / f'{i}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), image)
                label_map = torch.tensor([5.0, digit]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
                save_label_map(label_map, str(folder / f'token_labels/{split}/{digit}/{i}.pt'))
    return folder


def shorten(name, workplace, work_dir, epochs=1):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False, batch_size=5)
        loader.dataset.data_root = str(workplace)
        if loader.dataset.type.endswith('ImageNet'):
            loader.dataset.type = 'TokenLabelDataset' if 'TokenLabel' in loader.dataset.type else 'CustomDataset'
            loader.dataset.data_prefix = loader.dataset.get('data_prefix', loader.dataset.pop('split'))
            loader.dataset.pop('split', None)
    cfg.train_cfg.max_epochs = epochs
    cfg.optim_wrapper.type = 'OptimWrapper'
    cfg.work_dir = str(work_dir)
    # mmengine keeps a visualizer for each name, and pytest may name a second folder as one that it has removed.
    cfg.visualizer.name = cfg.experiment_name = f'{name}-{next(RUNS)}'
    return cfg


def train(cfg):
    with DefaultScope.overwrite_default_scope(None):
        runner = Runner.from_cfg(cfg)
        runner.train()
    return runner


def miniature(cfg, num_classes=10):
    """Make an ImageNet config small: few classes, a shallow model, small images."""
    cfg.model.backbone.arch = LEAST_ARCH
    cfg.model.head.update(num_classes=num_classes, in_channels=32)
    cfg.model.data_preprocessor.num_classes = num_classes

    def shrink(transforms):
        for transform in transforms:
            for key, value in (('scale', 64), ('crop_size', 64), ('num_classes', num_classes)):
                if key in transform:
                    transform[key] = value
            shrink(transform.get('transforms', ()))

    for split in ('train', 'val', 'test'):
        shrink(cfg[f'{split}_dataloader'].dataset.pipeline)
    return cfg


@pytest.fixture(scope='module')
def trained(workplace, tmp_path_factory):
    """Return the config and the checkpoint of a digits classifier after an epoch."""
    work_dir = tmp_path_factory.mktemp('work')
    cfg = shorten('rmt-digits', workplace, work_dir)
    train(cfg)
    config = work_dir / 'config.py'
    cfg.dump(config)
    return str(config), str(work_dir / 'epoch_1.pth')


def test_inferencer_and_features(trained, workplace):
    config, checkpoint = trained
    image = str(workplace / 'val/3/0.png')
    result = ImageClassificationInferencer(config, pretrained=checkpoint, device='cpu')(image)[0]
    assert result['pred_scores'].sum() == pytest.approx(1, abs=1e-5)
    assert result['pred_class'] == str(result['pred_label'])  # the folders' names

    extract = FeatureExtractor(config, pretrained=checkpoint, device='cpu')
    pre_logits = extract(image, stage='pre_logits')[0]
    assert pre_logits.shape == (256,)
    assert extract(image, stage='backbone')[0][0].shape == (192, 2, 2)
    model = get_model(config, pretrained=checkpoint)
    expected = int(model.head.fc(pre_logits).argmax())
    assert expected == result['pred_label']


def test_a_checkpoint_starts_backbones_of_other_tasks(trained):
    config, checkpoint = trained
    arch = Config.fromfile(config).model.backbone.arch
    backbone = RMT(arch=arch.to_dict(), init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.'))
    backbone.init_weights()
    saved = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')['state_dict']
    loaded = 0
    for name, tensor in backbone.state_dict().items():
        if f'backbone.{name}' in saved:
            torch.testing.assert_close(tensor, saved[f'backbone.{name}'], atol=0, rtol=0)
            loaded += 1
    assert loaded == sum(name.startswith('backbone.') for name in saved)
    anew = {name.split('.')[0] for name in backbone.state_dict() if f'backbone.{name}' not in saved}
    assert anew == {'norm0', 'norm1', 'norm2', 'norm3'}


def test_linear_probe(trained, workplace, tmp_path):
    config, checkpoint = trained
    cfg = shorten('rmt-tiny_linear-probe_8xb128-90e_in1k', workplace, tmp_path)
    arch = Config.fromfile(config).model.backbone.arch
    miniature(cfg)
    cfg.model.backbone.arch = arch
    cfg.model.head.in_channels = arch.embed_dims[-1]
    cfg.model.backbone.init_cfg.checkpoint = checkpoint
    model = train(cfg).model
    saved = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')['state_dict']
    for name, tensor in model.backbone.state_dict().items():
        torch.testing.assert_close(tensor, saved[f'backbone.{name}'], atol=0, rtol=0)


def test_token_label_training_on_digits(workplace, tmp_path):
    cfg = shorten('rmt-digits_tl', workplace, tmp_path)
    runner = train(cfg)
    assert {'loss', 'loss_cls', 'loss_aux'} <= {k.split('/')[-1] for k in runner.message_hub.log_scalars}


@pytest.mark.parametrize('name', ['rmt-tiny_8xb128_in1k', 'rmt-small_tl_8xb128-310e_in1k'])
def test_imagenet_recipes_train_and_evaluate(name, workplace, tmp_path):
    cfg = miniature(shorten(name, workplace, tmp_path))
    runner = train(cfg)
    momentum = runner.message_hub and next(h for h in runner.hooks if 'EMA' in type(h).__name__).ema_model.momentum
    assert momentum == pytest.approx(1 - 0.99996 ** (5 / 512))
    scalars = runner.message_hub.log_scalars
    assert 'val/accuracy/top1' in scalars
    assert 'val/accuracy/top1_origin' in scalars
    checkpoint = CheckpointLoader.load_checkpoint(str(tmp_path / 'epoch_1.pth'), map_location='cpu')
    raw = {k: v for k, v in checkpoint['ema_state_dict'].items() if k.startswith('module.')}
    assert any(not torch.equal(checkpoint['state_dict'][k[len('module.') :]], v) for k, v in raw.items())


@pytest.mark.slow
def test_from_the_command_line(workplace, tmp_path):
    def call(*command):
        done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    options = [f'{split}_dataloader.dataset.data_root={workplace}' for split in ('train', 'val', 'test')]
    options += ['train_cfg.max_epochs=1', 'train_dataloader.batch_size=5']
    config, checkpoint = 'configs/classification/rmt-digits.py', tmp_path / 'plain/epoch_1.pth'
    call('tools/train.py', config, '--work-dir', tmp_path / 'plain', '--cfg-options', *options)
    tested = call('tools/test.py', config, checkpoint, '--work-dir', tmp_path / 'test', '--cfg-options', *options)
    assert 'accuracy/top1' in tested
    call(
        'tools/dataset_converters/make_token_labels.py',
        config,
        checkpoint,
        workplace / 'train',
        workplace / 'made/train',
        '--size',
        128,
        '--num-workers',
        0,
    )
    call(
        'tools/train.py',
        'configs/classification/rmt-digits_tl.py',
        '--work-dir',
        tmp_path / 'tl',
        '--cfg-options',
        *options,
        'train_dataloader.dataset.data_prefix.label_map_path=made/train',
    )
