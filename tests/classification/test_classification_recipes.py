"""The ImageNet configs build the published recipe."""

import json
from types import SimpleNamespace

import pytest
import torch

from support import ROOT

pytest.importorskip('mmpretrain')

from mmengine.config import Config  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402
from mmengine.registry import DATA_SAMPLERS, HOOKS, PARAM_SCHEDULERS, DefaultScope  # noqa: E402
from mmpretrain.datasets.transforms import RandomErasing  # noqa: E402
from mmpretrain.models.utils.batch_augments import CutMix, Mixup  # noqa: E402
from mmpretrain.registry import MODELS, TRANSFORMS  # noqa: E402
from torch import nn  # noqa: E402

from rmt_mm.classification import RMTTokenLabelHead, TrackGeometry, ema_hook  # noqa: E402

CONFIGS = ROOT / 'configs/classification'
PLAIN = {'tiny': (14_334_216, 0.1), 'small': (26_967_240, 0.15), 'base': (54_154_896, 0.4), 'large': (95_464_864, 0.5)}
TOKEN_LABEL = {'small': (27_480_240, 0.15), 'base': (54_667_896, 0.4), 'large': (96_105_864, 0.5)}
NAMES = {
    **{f'rmt-{size}_8xb128_in1k': facts for size, facts in PLAIN.items()},
    **{f'rmt-{size}_tl_8xb128-310e_in1k': facts for size, facts in TOKEN_LABEL.items()},
}


@pytest.fixture(autouse=True)
def _scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def load(name):
    return Config.fromfile(CONFIGS / f'{name}.py')


def by_type(transforms, kind):
    found = [t for t in transforms if type(t).__name__ == kind]
    assert len(found) == 1, f'{len(found)} transforms of type {kind}'
    return found[0]


@pytest.mark.parametrize('name', NAMES)
def test_models(name):
    params, drop_path = NAMES[name]
    model = MODELS.build(load(name).model)
    assert sum(p.numel() for p in model.parameters()) == params
    assert isinstance(model.head, RMTTokenLabelHead) == ('_tl_' in name)
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in model.modules()) == 8  # stem, downsampling, head
    rates = [block.drop_path1.drop_prob for stage in model.backbone.stages for block in stage]
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(drop_path)
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)  # SyncBN works in eval mode without a GPU


@pytest.mark.parametrize('name', NAMES)
def test_data(name):
    cfg, token_label = load(name), '_tl_' in name
    train = [TRANSFORMS.build(t) for t in cfg.train_dataloader.dataset.pipeline]
    test = [TRANSFORMS.build(t) for t in cfg.test_dataloader.dataset.pipeline]
    order = [type(t).__name__ for t in train]
    moving = train
    if token_label:
        assert order == [
            'LoadImageFromFile',
            'LoadLabelMap',
            'TrackGeometry',
            'RandomErasing',
            'MakeTokenLabels',
            'PackInputs',
        ]
        moving = train[2].transforms
        assert isinstance(train[2], TrackGeometry)
        assert [type(t).__name__ for t in moving] == ['RandomFlip', 'RandAugment', 'RandomResizedCrop']
        assert train[4].smoothing == 0.1
        assert train[1].num_classes == train[4].num_classes == 1000
    else:
        assert order == [
            'LoadImageFromFile',
            'RandomResizedCrop',
            'RandomFlip',
            'RandAugment',
            'RandomErasing',
            'PackInputs',
        ]
    crop, flip, augment, erasing = (
        by_type(moving, 'RandomResizedCrop'),
        by_type(moving, 'RandomFlip'),
        by_type(moving, 'RandAugment'),
        by_type(train, 'RandomErasing'),
    )
    assert (tuple(crop.scale), crop.interpolation, crop.crop_ratio_range) == ((224, 224), 'bicubic', (0.08, 1.0))
    assert flip.prob == 0.5
    assert (augment.num_policies, augment.magnitude_level, augment.magnitude_std) == (2, 9, 0.5)
    assert len(augment.transforms) == 15
    assert isinstance(erasing, RandomErasing)
    assert (erasing.erase_prob, erasing.mode) == (0.25, 'rand')

    resize, center = by_type(test, 'ResizeEdge'), by_type(test, 'CenterCrop')
    assert resize.interpolation == 'bicubic'
    assert center.crop_size == (224, 224)
    assert 224 / resize.scale == pytest.approx(0.96 if token_label else 0.875, abs=2e-3)

    sampler = DATA_SAMPLERS.build(cfg.train_dataloader.sampler, default_args=dict(dataset=range(30), seed=0))
    drawn = list(sampler)
    assert len(drawn) == 30
    assert len(set(drawn)) == (30 if token_label else 10)  # three times 10 of the 30, or each once
    assert cfg.train_dataloader.batch_size == 128


@pytest.mark.parametrize('name', NAMES)
def test_batches_and_losses(name):
    cfg = load(name)
    cfg.model.backbone.arch = 'small'
    cfg.model.head.in_channels = 512
    model = MODELS.build(cfg.model)
    augments = model.data_preprocessor.batch_augments
    if '_tl_' in name:
        assert augments is None
        assert (model.head.cls_weight, model.head.aux_weight, model.mix_alpha) == (1.0, 0.5, 1.0)
        return
    assert [type(a) for a in augments.augments] == [Mixup, CutMix]
    assert [a.alpha for a in augments.augments] == [0.8, 1.0]
    assert augments.probs is None  # each with the same probability
    score = torch.randn(4, 1000)
    target = torch.arange(4)
    expected = nn.functional.cross_entropy(score, target, label_smoothing=0.1)
    torch.testing.assert_close(model.head.loss_module(score, target), expected)


@pytest.mark.parametrize('name', ['rmt-tiny_8xb128_in1k', 'rmt-base_8xb128_in1k', 'rmt-base_tl_8xb128-310e_in1k'])
def test_optimiser(name):
    cfg = load(name)
    assert cfg.optim_wrapper.pop('type') == 'AmpOptimWrapper'
    assert 'clip_grad' not in cfg.optim_wrapper
    model = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    decay = {id(p): group['weight_decay'] for group in optimizer.param_groups for p in group['params']}
    for param_name, param in model.named_parameters():
        assert decay[id(param)] == (0 if param.ndim == 1 else 0.05), param_name
    for group in optimizer.param_groups:
        assert (group['lr'], tuple(group['betas']), group['eps']) == (1e-3, (0.9, 0.999), 1e-8)
    assert any('gamma1' in n and p.ndim == 4 for n, p in model.named_parameters()) == ('base' in name)
    assert cfg.auto_scale_lr.base_batch_size == 1024


def simulate(cfg, epoch_length):
    """Return the learning rate at the start of every epoch."""
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=cfg.optim_wrapper.optimizer.lr)
    schedulers = []
    for scheduler in cfg.param_scheduler:
        scheduler = dict(scheduler)
        assert scheduler.pop('convert_to_iter_based')
        kind = PARAM_SCHEDULERS.get(scheduler.pop('type'))
        schedulers.append(kind.build_iter_from_epoch(optimizer=optimizer, **scheduler, epoch_length=epoch_length))
    rates = []
    optimizer.step()  # once, because schedulers warn without a step; it changes nothing
    for _ in range(cfg.train_cfg.max_epochs):
        rates.append(optimizer.param_groups[0]['lr'])
        for _ in range(epoch_length):
            for scheduler in schedulers:
                scheduler.step()
    return rates


@pytest.mark.parametrize('name, log', [('rmt-tiny_8xb128_in1k', 'tiny'), ('rmt-small_tl_8xb128-310e_in1k', 'small-tl')])
def test_schedule_is_that_of_the_released_logs(name, log, capsys):
    """The logs are of batch 2048 and show the rate of the epoch before, since it is set after the epoch."""
    cfg, official = load(name), json.loads((ROOT / 'tests/data/official_lr.json').read_text())[log]
    assert cfg.train_cfg.max_epochs == official['epochs']
    rates = simulate(cfg, epoch_length=1251)
    largest = (0, 0)
    for logged_at, rate in official['lr_by_epoch'].items():
        epoch = max(0, int(logged_at) - 1)
        low = 1e-6 if epoch < 5 else 1e-5
        expected = low + (rate - low) * (1e-3 - low) / (2e-3 - low)
        largest = max(largest, (abs(rates[epoch] - expected), epoch))
    with capsys.disabled():
        print(f'\n{name}: largest deviation from the released log {largest[0]:.2e}, at epoch {largest[1]}')
    assert largest[0] < 5e-7  # of a peak of 1e-3; during the warm-up the cosine has already begun
    assert rates[0] == pytest.approx(1e-6)
    assert max(rates) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize('name', NAMES)
def test_ema(name):
    """Raw and averaged weights are both evaluated; statistics of BatchNorm are averaged too."""
    (hook,) = (hook for hook in load(name).custom_hooks if 'EMA' in hook.type)
    assert hook.pop('priority') == 'ABOVE_NORMAL'  # before the checkpoint hook, which saves both
    hook = HOOKS.build(hook)
    assert hook.evaluate_on_ema and hook.evaluate_on_origin
    assert hook.ema_cfg['update_buffers']
    assert (hook.begin_iter, hook.begin_epoch) == (0, 0)  # from the first iteration


@pytest.mark.parametrize('processes, images', [(1, 128), (8, 128), (4, 64)])
def test_ema_follows_the_batch_of_all_processes(processes, images, monkeypatch):
    """The decay is 0.99996 to the power of batch / 512; check the average of the weights of three iterations."""
    monkeypatch.setattr(ema_hook, 'get_world_size', lambda: processes)
    model = nn.Linear(1, 1, bias=False).double().requires_grad_(False)
    values = [3.0, 5.0, -7.0, 11.0]
    cfg = next(dict(hook) for hook in load('rmt-tiny_8xb128_in1k').custom_hooks if 'EMA' in hook.type)
    del cfg['priority']
    hook = HOOKS.build(cfg)
    model.weight.fill_(values[0])
    runner = SimpleNamespace(model=model, cfg=Config(dict(train_dataloader=dict(batch_size=images))), iter=0, epoch=0)
    hook.before_run(runner)
    decay = 0.99996 ** (processes * images / 512)
    expected = values[1]  # mmengine's average starts with the weights of its first update
    for i, value in enumerate(values[1:]):
        model.weight.fill_(value)
        runner.iter = i
        hook.after_train_iter(runner, i)
        expected = decay * expected + (1 - decay) * value
    assert float(hook.ema_model.module.weight) - values[1] == pytest.approx(expected - values[1], rel=1e-6)
    assert hook.ema_model.momentum == pytest.approx(1 - decay, rel=1e-9)


def test_linear_probe_trains_its_classifier_alone():
    cfg = load('rmt-tiny_linear-probe_8xb128-90e_in1k')
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model).train()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {'head.fc.weight', 'head.fc.bias'}
    assert not any(m.training for m in model.backbone.modules() if isinstance(m, nn.SyncBatchNorm))
    cfg.optim_wrapper.type = 'OptimWrapper'
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    assert isinstance(optimizer, torch.optim.SGD)
    [TRANSFORMS.build(t) for t in cfg.train_dataloader.dataset.pipeline]
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 1000)
