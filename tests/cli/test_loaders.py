"""Data loaders without workers: settings that torch then refuses are dropped, with a note."""

import argparse

import pytest
from mmengine.config import Config
from torch.utils.data import DataLoader

import rmt_mm
from rmt_mm.tools import cli
from rmt_mm.tools.cli.loaders import drop_worker_settings

SETTINGS = dict(persistent_workers=True, prefetch_factor=4, timeout=9, multiprocessing_context='fork')


def build(loader):
    return DataLoader(**{**loader, 'dataset': [1]})


@pytest.mark.parametrize('key', SETTINGS)
@pytest.mark.parametrize('nested', [False, True])
def test_a_setting_that_needs_workers(key, nested, capsys):
    loader = dict(dataset=dict(type='ToyData'), num_workers=0, **{key: SETTINGS[key]})
    cfg = Config(dict(val_dataloader=[loader] if nested else loader))
    drop_worker_settings(cfg)
    kept = cfg.val_dataloader[0] if nested else cfg.val_dataloader
    assert list(build(kept)) == [1]
    err = capsys.readouterr().err
    assert f'note: val_dataloader{".0" if nested else ""} has num_workers=0' in err and key in err


@pytest.mark.parametrize('workers', [dict(num_workers=2), dict(num_workers=0, persistent_workers=False)])
def test_what_torch_takes_is_left_alone(workers, capsys):
    loader = dict(dataset=dict(type='ToyData'), **workers, **(SETTINGS if workers['num_workers'] else {}))
    cfg = Config(dict(train_dataloader=dict(loader)))
    drop_worker_settings(cfg)
    assert cfg.train_dataloader == loader and not capsys.readouterr().err


def test_the_option_of_a_command_line(tmp_path, capsys):
    args = argparse.Namespace(
        config='mask-rcnn_rmt-t_fpn_amp-1x_coco',
        cfg_options={'train_dataloader.num_workers': 0},
        work_dir=str(tmp_path),
        launcher='none',
        local_rank=0,
    )
    cfg = cli.load_config(args)
    assert 'persistent_workers' not in cfg.train_dataloader and cfg.val_dataloader.persistent_workers
    assert Config.fromfile(rmt_mm.get_config_path(args.config)).train_dataloader.persistent_workers
    assert 'note: train_dataloader has num_workers=0' in capsys.readouterr().err
