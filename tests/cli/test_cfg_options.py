"""--cfg-options: settings that mmengine reads are accepted, options that certainly change nothing are refused."""

import argparse
import inspect
import re

import mmengine.runner
import pytest
from mmengine.config import Config

import rmt_mm
from rmt_mm.errors import UsageError
from rmt_mm.tools.cli.cfg_options import KNOWN_KEYS, CfgOptions, apply_options, check_top_level_names

DETECTION = 'mask-rcnn_rmt-t_fpn_amp-1x_coco'
SEGMENTATION = 'rmt-tiny_upernet_8xb2-amp-160k_ade20k-512x512'


def apply(name, *options):
    """Apply options, given as on the command line, to one of our configs."""
    cfg = Config.fromfile(rmt_mm.get_config_path(name))
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions, default={})
    apply_options(cfg, parser.parse_args(['--cfg-options', *options]).cfg_options)
    return cfg


def refused(name, *options):
    with pytest.raises(UsageError) as caught:
        apply(name, *options)
    return str(caught.value)


@pytest.mark.parametrize(
    'name, option, works',
    [
        (DETECTION, 'data_root=/nonexistent', 'train_dataloader.dataset.data_root, val_dataloader.dataset.data_root'),
        (DETECTION, 'data_root=/nonexistent', 'val_evaluator.ann_file'),
        (DETECTION, 'dataset_type=Foo', 'train_dataloader.dataset.type'),
        (DETECTION, 'train_pipeline.0.type=Foo', 'set train_dataloader.dataset.pipeline.0.type.'),
        (DETECTION, 'backend_args=Foo', 'train_dataloader.dataset.backend_args'),
        (DETECTION, 'max_epochs=3', 'set train_cfg.max_epochs.'),
        (DETECTION, 'lr=0.1', 'set optim_wrapper.optimizer.lr.'),
        (SEGMENTATION, 'crop_size=(256,256)', 'model.data_preprocessor.size'),
    ],
)
def test_ingredients_that_reach_nothing(name, option, works):
    sentence = refused(name, option)
    assert 'would change nothing' in sentence and works in sentence


def test_the_option_that_is_named_works():
    sentence = refused(SEGMENTATION, 'crop_size=(256,256)')
    cfg = apply(SEGMENTATION, *(f'{path}=(256,256)' for path in sentence.rsplit('set ', 1)[1].rstrip('.').split(', ')))
    assert cfg.model.data_preprocessor.size == (256, 256)
    (crop,) = (step for step in cfg.train_dataloader.dataset.pipeline if step.type == 'RandomCrop')
    assert crop.crop_size == (256, 256)


def test_what_mmengine_takes_instead():
    cfg = Config(
        dict(
            model=dict(data_preprocessor=dict(size=(2, 2))),
            data_preprocessor=dict(size=(2, 2)),
            model_wrapper_cfg=dict(type='MMDistributedDataParallel'),
        )
    )
    with pytest.raises(UsageError, match=r'set model\.data_preprocessor\.size\.'):
        apply_options(cfg, {'data_preprocessor.size': (1, 1)})
    with pytest.raises(UsageError, match=r'set model_wrapper_cfg\.find_unused_parameters\.'):
        apply_options(cfg, {'find_unused_parameters': True})
    cfg = Config(dict(model=dict(), data_preprocessor=dict(size=(2, 2))))
    apply_options(cfg, {'data_preprocessor.size': (1, 1), 'find_unused_parameters': True})
    assert cfg.data_preprocessor.size == (1, 1) and cfg.find_unused_parameters


@pytest.mark.parametrize(
    'option',
    [
        'find_unused_parameters=True',
        'compile=True',
        'compile.backend=eager',
        'model_wrapper_cfg.type=MMDistributedDataParallel',
        'sync_bn=torch',
        'activation_checkpointing=backbone',
        'efficient_conv_bn_eval=[backbone]',
        'strategy.type=DDPStrategy',
        'tta_model.tta_cfg.max_per_img=10',
        'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult=0.1',
        'default_hooks.NEW.type=EMAHook',
        'train_dataloader.collate_fn.type=default_collate',
        'runner_type=Runner',
        'randomness.seed=3',
        'resume=True',
        'load_from=a.pth',
        'model.backbone.frozen_stages=2',
        'model.backbone.init_cfg.type=Pretrained',
        'auto_scale_lr.enable=True',
        'env_cfg.dist_cfg.backend=gloo',
        'experiment_name=a',
        'log_level=DEBUG',
        'visualizer.vis_backends.0.type=TensorboardVisBackend',
        'launcher=pytorch',
        'work_dir=a',
    ],
)
@pytest.mark.parametrize('name', [DETECTION, SEGMENTATION])
def test_what_mmengine_reads_is_accepted(name, option, capsys):
    path, value = option.split('=')
    cfg = apply(name, option)
    for key in path.split('.'):
        cfg = cfg[int(key) if key.isdigit() else key]
    assert str(cfg) in (value, value.strip('[]'), f"['{value[1:-1]}']")
    assert 'note' not in capsys.readouterr().err


def test_all_keys_that_the_runners_read_are_known():
    """The keys are read from mmengine's source, so that the test holds on both stacks."""
    for runner in (mmengine.runner.Runner, mmengine.runner.FlexibleRunner):
        source = inspect.getsource(inspect.getmodule(runner))
        read = set(re.findall(r"\bcfg\.get\(\s*'(\w+)'", source)) | set(re.findall(r"\bcfg\['(\w+)'\]", source))
        assert read - {'type'} <= KNOWN_KEYS and len(read) > 20


def test_names_with_dots_stay_whole():
    keys = 'optim_wrapper.paramwise_cfg.custom_keys'
    cfg = apply(DETECTION, f'{keys}.backbone.stages.0.lr_mult=0.5', f'{keys}.backbone.stages.0.decay_mult=0.')
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys['backbone.stages.0'] == dict(lr_mult=0.5, decay_mult=0.0)
    cfg = Config(dict(model=dict(a={'b.c': dict(d=1)})))
    apply_options(cfg, {'model.a.b.c.d': 2})
    assert cfg.model.a == {'b.c': dict(d=2)}


def test_an_option_below_none():
    cfg = Config(dict(model=dict(init_cfg=None)))
    apply_options(cfg, {'model.init_cfg.type': 'Pretrained', 'model.init_cfg.checkpoint': 'a.pth'})
    assert cfg.model.init_cfg == dict(type='Pretrained', checkpoint='a.pth')


@pytest.mark.parametrize(
    'option, meant',
    [
        ('trian_cfg.max_epochs=3', 'train_cfg'),
        ('train_cfg.max_epoch=3', 'max_epochs'),
        ('optim_wraper.type=A', 'optim_wrapper'),
        ('model.backbone.drop_path_rat=0.1', 'drop_path_rate'),
        ('model.backbone.frozen_stage=1', 'frozen_stages'),
        ('train_dataloader.dataset.pipeline.99.type=A', '99'),
    ],
)
def test_misspelt_options(option, meant):
    assert repr(meant) in refused(DETECTION, option)


def test_an_argument_that_resembles_another_is_accepted():
    assert apply(DETECTION, 'model.rpn_head.loss_bbox.loss_weight=2').model.rpn_head.loss_bbox.loss_weight == 2
    # None of our configs sets norm_eval; they set norm_cfg.
    assert apply(DETECTION, 'model.backbone.norm_eval=True').model.backbone.norm_eval is True


def test_an_unknown_option_is_let_through_with_a_note(capsys):
    assert apply(DETECTION, 'my_switch=3').my_switch == 3
    assert "reads 'my_switch'" in capsys.readouterr().err


@pytest.mark.parametrize('option', ['foo', '=3', '.=3', 'model.backbone.arch=[(1,2'])
def test_what_is_not_key_value(option, capsys):
    with pytest.raises(SystemExit):
        apply(DETECTION, option)
    assert 'error: argument --cfg-options' in capsys.readouterr().err


def test_a_key_below_a_value():
    assert "model.backbone.arch is 'tiny'" in refused(DETECTION, 'model.backbone.arch.depths=3')


def test_misspelt_keys_of_a_file(capsys):
    cfg = Config.fromfile(rmt_mm.get_config_path(DETECTION))
    check_top_level_names(cfg, 'a.py')
    misspelt = dict(optim_wraper='optim_wrapper', custom_hook='custom_hooks', val_evaluater='val_evaluator')
    for key, meant in misspelt.items():
        wrong = Config(dict(cfg.to_dict(), **{key: dict(of_its_own=1)}))
        with pytest.raises(UsageError, match=f"a.py sets '{key}', which nothing reads: did you mean '{meant}'"):
            check_top_level_names(wrong, 'a.py')
    assert capsys.readouterr().err == ''


def test_names_of_variables_are_no_misspellings(capsys):
    """The names are from the libraries' own configs, and one is of a variable whose value is used."""
    cfg = Config(dict(model=dict(a=1), val_evaluator_abs=dict(b=1), test_pipeline=[1], train_dataset=2, optimizer=1))
    check_top_level_names(cfg, 'a.py')
    assert capsys.readouterr().err == ''
    cfg = Config(dict(model=dict(a=1), custom_hook=dict(b=1), custom_hooks=[dict(b=1)], models=dict(c=1)))
    check_top_level_names(cfg, 'a.py')
    notes = capsys.readouterr().err
    assert "'custom_hook'" in notes and "'models'" in notes
