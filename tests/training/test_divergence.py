"""A training whose loss is NaN or infinite stops, and says where; its checkpoints are of before."""

import itertools
import os
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS

from rmt_mm.tools.commands import train

from support import toy_training
from support.toy import ToyConvNet

numbers = itertools.count()


@MODELS.register_module(force=True)
class ToyOverflow(ToyConvNet):
    """Its loss is NaN in some iterations, and its gradients are not; or a layer's output is infinite."""

    def __init__(self, bad=(), layer=False):
        super().__init__()
        self.middle = torch.nn.Identity()
        self.bad, self.layer, self.count = bad, layer, 0

    def forward(self, inputs, labels=None, mode='tensor'):
        features = self.backbone(inputs)
        if mode != 'loss':
            return list(self.head(features.mean((2, 3))))
        is_bad = self.count in self.bad
        self.count += 1
        features = self.middle(features + float('inf') if is_bad and self.layer else features)
        loss = self.head(features.clamp(-9, 9).mean((2, 3))).square().mean()
        return dict(loss_a=loss, loss_b=loss.detach() * (float('nan') if is_bad else 1))


@HOOKS.register_module(force=True)
class PoisonHook(Hook):
    """Set a weight to NaN in an iteration, counted from 0."""

    def __init__(self, iteration):
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == self.iteration:
            runner.model.head.bias.data[0] = float('nan')


@pytest.fixture
def training(tmp_path, monkeypatch):
    """Train a toy model for 3 epochs of 3 iterations, or 9 iterations; return the exit's text, '' for success."""
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')

    def run(iterations=False, options=(), **model):
        path = tmp_path / f'{next(numbers)}.py'
        toy_training.write_config(path, iterations=iterations)
        cfg = Config.fromfile(path)
        cfg.train_cfg.update(dict(max_iters=9) if iterations else dict(max_epochs=3))
        cfg.experiment_name = f'divergence{next(numbers)}'
        if model:
            cfg.model = dict(type='ToyOverflow', **model)
        cfg.merge_from_dict(dict(options))
        cfg.dump(path)
        monkeypatch.setattr(sys, 'argv', ['train.py', str(path), '--work-dir', str(tmp_path / 'work')])
        return toy_training.run_here(train.main)

    return run


@pytest.mark.parametrize('iterations', [False, True])
def test_a_learning_rate_of_1e30(iterations, training, tmp_path):
    text = training(iterations, options={'optim_wrapper.optimizer.type': 'SGD', 'optim_wrapper.optimizer.lr': 1e30})
    assert text.startswith('error: the training diverged at iteration ')
    assert 'loss=nan' in text and 'weights of backbone.weight' in text
    assert 'learning rate (now up to 1e+30)' in text and 'nothing was saved' in text
    assert not list((tmp_path / 'work').glob('*.pth'))


@pytest.mark.parametrize('iterations', [False, True])
@pytest.mark.parametrize('after', [5, 6])
def test_the_last_checkpoint_stays_and_is_named(iterations, after, training, tmp_path):
    """Weights are NaN after the last iteration but one of the second epoch, or after its last, whose loss is finite."""
    good = 'iter_3.pth' if iterations else 'epoch_1.pth'
    hook = dict(type='PoisonHook', iteration=after - 1)
    text = training(iterations, options={'custom_hooks': [hook]})
    assert str(tmp_path / 'work' / good) in text and 'diverged at iteration 6' in text
    assert ('loss=nan' if after == 5 else '1 tensors are NaN') in text
    names = sorted(name for name in os.listdir(tmp_path / 'work') if name.endswith('.pth'))
    assert names == sorted([good, f'best_sum_{good}'])


def test_nan_weights_are_not_validated_between_checkpoints(training, tmp_path):
    options = {
        'custom_hooks': [dict(type='PoisonHook', iteration=3)],
        'train_cfg.val_interval': 4,
        'default_hooks.checkpoint.interval': 9,
    }
    text = training(True, options=options)
    assert 'diverged at iteration 4: 1 tensors are NaN' in text
    assert not list((tmp_path / 'work').glob('*.pth'))


def test_a_single_loss_is_passed_and_a_row_is_not(training):
    assert training(bad=[1, 3, 4, 5, 6]) == ''
    text = training(bad=[2, 3, 4, 5, 6])
    assert 'diverged at iteration 7: loss=nan, loss_b=nan in 5 iterations in a row' in text
    assert 'the loss itself' in text and 'epoch_2.pth' in text


def test_the_first_layer_of_an_output_is_named(training):
    text = training(bad=list(range(20)), layer=True)
    assert 'diverged at iteration 5' in text and 'output of middle' in text
