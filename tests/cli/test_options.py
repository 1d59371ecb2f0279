"""The effects of the tools' options on a config, and that the tools apply them; in this process, without training."""

import runpy
import sys
import textwrap

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import TRANSFORMS
from torch import nn

import rmt_mm
from rmt_mm.errors import UsageError
from rmt_mm.tools import cli
from rmt_mm.tools.cli import runner as cli_runner
from rmt_mm.tools.cli.types import type_name

from support import ROOT

DETECTION = 'mask-rcnn_rmt-t_fpn_amp-1x_coco'
SEGMENTATION = 'rmt-tiny_fpn_8xb2-80k_ade20k-512x512'


@pytest.fixture
def pure_python(tmp_path):
    """Return a detector in mmengine's pure-Python style: every type is a class, and there is no default_scope."""
    (tmp_path / 'base.py').write_text(
        textwrap.dedent("""
        from mmdet.engine.hooks import DetVisualizationHook
        from mmdet.models import FPN, RetinaHead, RetinaNet
        from mmdet.models.data_preprocessors import DetDataPreprocessor
        from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder
        from torch.nn import SyncBatchNorm

        from rmt_mm import RMT
        model = dict(
            type=RetinaNet, data_preprocessor=dict(type=DetDataPreprocessor),
            backbone=dict(type=RMT, arch='tiny', out_indices=(1, 2, 3), norm_cfg=dict(type=SyncBatchNorm)),
            neck=dict(type=FPN, in_channels=[128, 256, 512], out_channels=8, num_outs=5),
            bbox_head=dict(
                type=RetinaHead, num_classes=3, in_channels=8, feat_channels=8, stacked_convs=1,
                anchor_generator=dict(type=AnchorGenerator, octave_base_scale=4, scales_per_octave=1, ratios=[1.0],
                                      strides=[8, 16, 32, 64, 128]),
                bbox_coder=dict(type=DeltaXYWHBBoxCoder)))
        default_hooks = dict(visualization=dict(type=DetVisualizationHook))
        default_scope = None
    """)
    )
    path = tmp_path / 'config.py'
    path.write_text(
        textwrap.dedent("""
        from mmengine.config import read_base

        with read_base():
            from .base import *
        from mmcv.transforms import LoadImageFromFile
        from mmdet.datasets import CocoDataset
        from mmdet.datasets.transforms import PackDetInputs
        from mmengine.optim import OptimWrapper
        from torch.optim import AdamW
        optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=1e-4))
        auto_scale_lr = dict(base_batch_size=16)
        test_dataloader = dict(dataset=dict(type=CocoDataset, pipeline=[
            dict(type=LoadImageFromFile), dict(type=PackDetInputs)]))
    """)
    )
    return str(path)


def ours(name=DETECTION):
    cfg = Config.fromfile(rmt_mm.get_config_path(name))
    cfg.launcher = 'none'
    return cfg


def test_amp(pure_python):
    for cfg in (ours(SEGMENTATION), Config.fromfile(pure_python), Config(dict(optim_wrapper={}))):
        cli.use_amp(cfg)
        assert type_name(cfg.optim_wrapper.type) == 'AmpOptimWrapper' and cfg.optim_wrapper.loss_scale == 'dynamic'
    cli.use_amp(cfg)  # a second call changes nothing
    assert cfg.optim_wrapper == dict(type='AmpOptimWrapper', loss_scale='dynamic')
    with pytest.raises(UsageError, match='ApexOptimWrapper'):
        cli.use_amp(Config(dict(optim_wrapper=dict(type='ApexOptimWrapper'))))
    with pytest.raises(UsageError, match='optim_wrapper'):
        cli.use_amp(Config(dict(model=1)))


def test_amp_keeps_the_loss_scale_of_a_config():
    cfg = Config(dict(optim_wrapper=dict(type='AmpOptimWrapper', loss_scale=512.0)))
    cli.use_amp(cfg)
    assert cfg.optim_wrapper.loss_scale == 512.0


def test_auto_scale_lr(pure_python):
    for cfg in (ours(), Config.fromfile(pure_python)):
        assert not cfg.auto_scale_lr.get('enable')
        cli.use_auto_scale_lr(cfg)
        assert cfg.auto_scale_lr.enable is True and cfg.auto_scale_lr.base_batch_size == 16
    for wrong in ({}, dict(auto_scale_lr=None), dict(auto_scale_lr=dict(enable=False))):
        with pytest.raises(UsageError, match='base_batch_size'):
            cli.use_auto_scale_lr(Config(wrong))


def test_tta_of_the_config():
    for name in ('retinanet_rmt-t_fpn_amp-1x_coco', SEGMENTATION):
        cfg, before = ours(name), ours(name)
        cli.use_tta(cfg)
        assert cfg.model.type == before.tta_model.type and cfg.model.module == before.model
        assert cfg.test_dataloader.dataset.pipeline == before.tta_pipeline != before.test_dataloader.dataset.pipeline


def test_tta_of_wrapped_data_sets():
    inner = dict(type='CocoDataset', pipeline=[dict(type='PackDetInputs')])
    for dataset in (dict(dataset=inner, times=2), dict(datasets=[inner, inner])):
        cfg = Config(dict(default_scope='mmdet', model=dict(type='A'), test_dataloader=dict(dataset=dataset)))
        cli.use_tta(cfg)
        dataset = cfg.test_dataloader.dataset
        for data in dataset.get('datasets') or [dataset.dataset]:
            assert data.pipeline[-1].type == 'TestTimeAug'


@pytest.mark.parametrize('scope, model', [('mmdet', 'DetTTAModel'), ('mmpretrain', 'AverageClsScoreTTA')])
def test_default_tta_is_that_of_the_library(scope, model, capsys):
    pack = dict(type='PackDetInputs' if scope == 'mmdet' else 'PackInputs')
    cfg = Config(
        dict(
            default_scope=scope,
            model=dict(type='A'),
            test_dataloader=dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), pack])),
        )
    )
    cli.use_tta(cfg)
    assert type_name(cfg.model.type) == model and cfg.model.module == dict(type='A')
    load, tta = cfg.test_dataloader.dataset.pipeline
    assert load.type == 'LoadImageFromFile'
    with TRANSFORMS.switch_scope_and_registry(scope) as registry:
        flipped, plain = (aug.transforms for aug in registry.build(tta).subroutines)
    assert [t[0].prob for t in (flipped, plain)] == [1, 0] and type(flipped[1]).__name__ == pack['type']
    assert capsys.readouterr().err.count('note: ') == 2


def test_default_tta_of_a_pure_python_config(pure_python):
    cfg = Config.fromfile(pure_python)
    cli.use_tta(cfg)
    assert cfg.model.type == 'DetTTAModel' and type_name(cfg.model.module.type) == 'RetinaNet'
    assert cfg.test_dataloader.dataset.pipeline[-1].type == 'TestTimeAug'


def test_tta_without_a_default():
    cfg = Config(dict(default_scope='mmseg', model=dict(type='A'), test_dataloader=dict(dataset=dict(pipeline=[]))))
    with pytest.raises(UsageError, match='tta_model and tta_pipeline'):
        cli.use_tta(cfg)
    with pytest.raises(UsageError, match='test_dataloader'):
        cli.use_tta(Config(dict(model=dict(type='A'))))


def test_tta_of_masks():
    with pytest.raises(UsageError, match='no masks'):
        cli.use_tta(ours())


def test_show_dir(pure_python, tmp_path):
    folder = str(tmp_path / 'shown')
    cfg = Config.fromfile(pure_python)
    cli.draw_predictions(cfg, folder)
    hook = cfg.default_hooks.visualization
    assert (hook.draw, hook.test_out_dir, hook.interval) == (True, folder, 1)
    cfg = ours(SEGMENTATION)
    cli.draw_predictions(cfg, folder)
    assert cfg.default_hooks.visualization.draw and cfg.visualizer.save_dir == folder
    cfg = ours('rmt-tiny_8xb128_in1k')
    cli.draw_predictions(cfg, folder)
    assert cfg.default_hooks.visualization.enable and cfg.default_hooks.visualization.out_dir == folder
    with pytest.raises(UsageError, match='default_hooks.visualization'):
        cli.draw_predictions(Config(dict(model=1)), folder)


def norms(cfg):
    from mmengine.registry import MODELS, DefaultScope

    with DefaultScope.overwrite_default_scope('mmdet'):
        return {
            type(module).__name__
            for module in MODELS.build(cfg.model.backbone).modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        }


def test_cpu(pure_python):
    for cfg in (ours(), Config.fromfile(pure_python)):
        assert norms(cfg) == {'SyncBatchNorm'}
        cfg.merge_from_dict(dict(launcher='none', sync_bn='torch'))
        cli.use_amp(cfg)
        cli_runner._adapt_to_cpu(cfg)
        assert cfg.optim_wrapper.type == 'OptimWrapper' and 'loss_scale' not in cfg.optim_wrapper
        assert norms(cfg) == {'BatchNorm2d'} and cfg.sync_bn is None


@pytest.mark.parametrize('given', [None, dict(type='MMDistributedDataParallel', broadcast_buffers=True)])
def test_several_processes_on_the_cpu(given, monkeypatch):
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda backend: called.append(backend))
    called = []
    cfg = ours()
    cfg.merge_from_dict(dict(launcher='pytorch', model_wrapper_cfg=given, find_unused_parameters=True))
    cli_runner._adapt_to_cpu(cfg)
    assert called == ['gloo'] and cfg.model_wrapper_cfg.device_ids is None
    if given is None:  # mmengine reads the setting only without a wrapper
        assert cfg.model_wrapper_cfg.find_unused_parameters is True
    assert cfg.model_wrapper_cfg.broadcast_buffers is bool(given)


class Pictures(list):
    """A data set of the paths in it."""

    metainfo = dict(classes=('a', 'b', 'c'), palette=[(0, 0, 0)] * 3)

    def get_data_info(self, index):
        return dict(img_path=self[index])


def test_pictures_of_one_name_are_named(capsys):
    cli.check_drawing(Pictures(['a/1.jpg', 'a/2.jpg']))
    assert capsys.readouterr().err == ''
    cli.check_drawing(Pictures(['a/1.jpg', 'a/2.jpg', 'b/1.jpg']))
    assert '1 names occur more than once, such as a/1.jpg and b/1.jpg' in capsys.readouterr().err


def test_colours_for_fewer_classes(monkeypatch):
    monkeypatch.setitem(Pictures.metainfo, 'palette', [(0, 0, 0)] * 2)
    with pytest.raises(UsageError, match='2 colours for 3 classes'):
        cli.check_drawing(Pictures())


class Built(Exception):
    """Carries the config from which a tool would have built a Runner."""


@pytest.fixture
def main(monkeypatch, tmp_path):
    """Run a tool up to the Runner, and return the config."""

    def stop(cfg, brief=False):
        raise Built(cfg)

    def run(tool, *args):
        for check in ('check_datasets', 'check_annotations', 'check_file', 'check_init_cfgs', 'choose_checkpoint'):
            monkeypatch.setattr(cli, check, lambda *args, **kwargs: None)
        monkeypatch.setattr(cli, 'build_runner', stop)
        monkeypatch.setattr(sys, 'argv', [tool, *args, '--work-dir', str(tmp_path / 'work')])
        with pytest.raises(Built) as built:
            runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
        return built.value.args[0]

    return run


def test_train_does_what_its_options_say(main, pure_python):
    plain = main('train.py', SEGMENTATION)
    assert plain.optim_wrapper.type == 'OptimWrapper' and not plain.auto_scale_lr.enable
    cfg = main('train.py', SEGMENTATION, '--amp', '--auto-scale-lr')
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper' and cfg.auto_scale_lr.enable
    cfg = main('train.py', pure_python, '--amp', '--auto-scale-lr', '--cfg-options', 'model.bbox_head.num_classes=5')
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper' and cfg.auto_scale_lr.enable
    assert cfg.model.bbox_head.num_classes == 5


def test_test_does_what_its_options_say(main, pure_python, tmp_path):
    for config in ('retinanet_rmt-t_fpn_amp-1x_coco', pure_python):
        cfg = main('test.py', config, 'a.pth', '--tta', '--show-dir', str(tmp_path))
        assert type_name(cfg.model.type) == 'DetTTAModel'
        assert cfg.default_hooks.visualization.test_out_dir == str(tmp_path)
        plain = main('test.py', config, 'a.pth')
        assert 'module' not in plain.model and not plain.default_hooks.visualization.get('draw')


def test_build_runner_adapts_the_config(monkeypatch):
    seen = []
    monkeypatch.setattr(cli_runner, '_adapt_to_cpu', seen.append)
    monkeypatch.setattr(cli_runner.Runner, 'from_cfg', lambda cfg: 'runner')
    for gpus in (False, True):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda gpus=gpus: gpus)
        assert cli.build_runner(Config(dict(model=1))) == 'runner' and len(seen) == 1
