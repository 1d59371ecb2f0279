"""No false alarm on the libraries' own configs: RMT with the channels of their ResNet passes the model check."""

import importlib
from pathlib import Path

import pytest
from mmengine.config import Config

from rmt_mm.errors import UsageError
from rmt_mm.tools.cli.cfg_options import check_top_level_names
from rmt_mm.tools.cli.model_check import check_model
from rmt_mm.tools.cli.notes import note
from rmt_mm.tools.cli.types import library, type_name
from rmt_mm.training.config_search import find_dicts
from rmt_mm.training.findings import report

from support.archs import LEAST_ARCH

RESNETS = ('ResNet', 'ResNetV1c', 'ResNetV1d', 'ResNeXt')
WIDE = {**LEAST_ARCH, 'embed_dims': (256, 512, 1024, 2048)}


def find_resnets(cfg):
    """Yield the models with a ResNet whose outputs have strides 4, 8, 16, 32, with RMT in its place."""
    for model in find_dicts(cfg.model, lambda d: isinstance(d.get('backbone'), dict)):
        old = model['backbone']
        plain = tuple(old.get('strides', (1, 2, 2, 2)))[1:] == (2,) * (old.get('num_stages', 4) - 1)
        # mmseg's configs state no strides, so that dilated ResNets can be checked as well.
        if type_name(old.get('type')) in RESNETS and (plain or library(cfg) == 'mmseg'):
            arch = dict(WIDE, embed_dims=(64, 128, 256, 512)) if old.get('depth') in (18, 34) else WIDE
            default = (3,) if library(cfg) == 'mmpretrain' else (0, 1, 2, 3)
            yield dict(model, backbone=dict(type='RMT', arch=arch, out_indices=old.get('out_indices', default)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize('package, least', [('mmdet', 400), ('mmseg', 400), ('mmpretrain', 40)])
def test_no_false_alarm(package, least):
    root = Path(importlib.import_module(package).__path__[0], '.mim/configs')
    checked, seen, refused = 0, set(), []
    for path in sorted(root.glob('*/**/*.py')):
        if '_base_' in path.parts:
            continue
        try:
            cfg = Config.fromfile(str(path), import_custom_modules=False)
        except (ImportError, OSError, KeyError, TypeError, SyntaxError, RuntimeError):
            continue  # a few are broken, or need packages that are not installed
        if not isinstance(cfg.get('model'), dict):
            continue
        try:
            check_top_level_names(cfg, str(path))
            for model in find_resnets(cfg):
                checked += 1
                key = repr({key: value for key, value in model.items() if key.endswith(('head', 'neck', 'backbone'))})
                if key not in seen:
                    seen.add(key)
                    report(check_model(model, library(cfg)), UsageError, note)
        except UsageError as error:
            refused.append(f'{path.relative_to(root)}: {error}')
    assert checked >= least and not refused, '\n'.join(refused)
