"""Every block of Python of README and docs runs, or is read and has a reason why it is not run."""

import ast
import importlib
import json
from argparse import Namespace

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, METRICS, MODELS, init_default_scope

from rmt_mm.config_path import get_config_path
from rmt_mm.tools.cli import load_config

from support import ROOT
from support.documented import BLOCKS_ELSEWHERE, BLOCKS_NOT_RUN, RUN_BLOCKS, Program
from support.pages import read_blocks, substitute
from support.swaps import library_config
from support.work_dirs import make_coco

BLOCKS = read_blocks()
ROWS = [*RUN_BLOCKS, *BLOCKS_ELSEWHERE, *BLOCKS_NOT_RUN]


def blocks_of(row):
    return [block for block in BLOCKS if str(block).startswith(row)]


def test_every_block_has_one_row():
    """Add a new block of a page to a table of support/documented.py."""
    wrong = [str(block).split('\n')[0] for block in BLOCKS if sum(map(str(block).startswith, ROWS)) != 1]
    assert wrong == [] and all(blocks_of(row) for row in ROWS)


@pytest.mark.parametrize('test', sorted(set(BLOCKS_ELSEWHERE.values())))
def test_tests_that_run_blocks_exist(test):
    path, name = test.split('::')
    assert name in {node.name for node in ast.parse((ROOT / path).read_text()).body if hasattr(node, 'name')}


@pytest.mark.parametrize(
    'row',
    [
        pytest.param(row, marks=pytest.mark.slow) if getattr(how, 'slow', False) else row
        for row, how in RUN_BLOCKS.items()
    ],
)
def test_runs(row, place, request, monkeypatch, tmp_path):
    [block] = blocks_of(row)
    how = RUN_BLOCKS[row]
    monkeypatch.chdir(place)
    if isinstance(how, Program):
        if how.slow:
            request.getfixturevalue('demo')
        exec(substitute(block.code, how.values), {})
    else:
        check_config(block.code, how, tmp_path)


def check_config(lines, how, folder):
    """Let the tools read lines of a config, and build what the lines change."""
    path = folder / 'config.py'
    base = library_config(how.base) if how.base.startswith('mm') else how.base and get_config_path(how.base)
    path.write_text((f'_base_ = {str(base)!r}\n' if base else '') + lines.replace('PATH/TO', str(ROOT)))
    cfg = load_config(Namespace(config=str(path), cfg_options={}, work_dir=str(folder), launcher='none', local_rank=0))
    importlib.import_module(f'{cfg.default_scope}.utils').register_all_modules(init_default_scope=False)
    init_default_scope(cfg.default_scope)
    if how.builds == 'data':
        check_pets(cfg, folder)
        return
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert type(model.backbone).__name__ == 'RMT'
    if how.builds == 'optimizer':
        cfg.optim_wrapper.type = 'OptimWrapper'  # mixed precision needs a GPU
        groups = build_optim_wrapper(model, cfg.optim_wrapper).param_groups
        assert len({group['lr'] for group in groups}) == sum(model.backbone.arch.depths) + 2


def check_pets(cfg, folder):
    """Build the data sets of the page on files as it names them: scenes of cats, dogs and another class."""
    annotations = make_coco(folder / 'made')
    pets = folder / 'data/pets'
    pets.mkdir(parents=True)
    (folder / 'made/images').rename(pets / 'images')
    content = json.loads(annotations.read_text())
    for category, name in zip(content['categories'], ('cat', 'dog', 'fish')):
        category['name'] = name
    for name in ('train.json', 'val.json'):
        (pets / name).write_text(json.dumps(content))
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.data_root == 'data/pets/'
        data = DATASETS.build({**loader.dataset, 'data_root': f'{pets}/'})
        assert data.metainfo['classes'] == ('cat', 'dog') and len(data) == 7
        assert {instance['bbox_label'] for i in range(7) for instance in data.get_data_info(i)['instances']} == {0, 1}
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert evaluator.ann_file == 'data/pets/val.json'
        METRICS.build({**evaluator, 'ann_file': f'{pets}/val.json'})
    assert cfg.model.roi_head.bbox_head.num_classes == cfg.model.roi_head.mask_head.num_classes == 2


@pytest.mark.parametrize('row', BLOCKS_NOT_RUN)
def test_is_read(row, tmp_path):
    [block] = blocks_of(row)
    path = tmp_path / 'config.py'
    path.write_text(block.code.replace('PATH/TO', str(ROOT)))
    assert Config.fromfile(path).model.backbone.type == 'RMT'
