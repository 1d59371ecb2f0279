"""Options that training and testing share, and their effects on a config."""

import argparse
import contextlib
import os
import os.path as osp
import shlex
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Iterator, Type

from mmengine.config import Config, ConfigDict
from mmengine.registry import VISBACKENDS

from ...errors import RMTError, UsageError, printable
from ...training.class_check import metainfos
from ...training.config_search import find_dicts, walk
from ...training.datasets import find_datasets
from .cfg_options import CfgOptions
from .notes import note
from .types import library, type_name


def _command(tool: str, installed: str) -> str:
    """Return the command of a tool: in a checkout the script, elsewhere the command that the package installs."""
    is_checkout = (Path(__file__).resolve().parents[3] / tool).is_file()
    return f'python {tool}' if is_checkout else installed


CONVERTER = _command('tools/model_converters/rmt_to_mm.py', 'rmt-convert')
LABELLER = _command(
    'tools/dataset_converters/make_token_labels.py', 'python -m rmt_mm.tools.commands.make_token_labels'
)
# Texts that the tools add to an error, by its remedy, filled with its facts. The library names no tool and no flag.
REMEDIES = {
    'convert': f'convert it with `{CONVERTER} SRC DST`',
    'allow_type': f'`{CONVERTER} SRC DST --allow-type {{allow_type}}` does so',
    'in_channels': f'convert it with `{CONVERTER} --in-channels {{channels}} SRC DST`',
    'task': f'`{CONVERTER} --task {{task}} SRC DST` does that',
    'weights': f'`{CONVERTER} --weights {{weights}} SRC DST` does that',
    'force': '--force replaces it',
    'label_maps': f'`{LABELLER}` makes them',
}


def describe(error: BaseException) -> str:
    """Return the text of an error for a terminal, in one line, with the remedy that the tools offer."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error) or type(error).__name__
    text = printable(' '.join(text.splitlines()))
    if not isinstance(error, RMTError):
        return f'{text} (RMT_MM_DEBUG=1 prints the traceback)'
    if error.remedy not in REMEDIES:
        return text
    # Quote facts: they may come from a file, and users paste them into a shell. Several values repeat their option.
    facts = {}
    for key, value in error.facts.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        facts[key] = f' --{key.replace("_", "-")} '.join(shlex.quote(str(v)) for v in values)
    return f'{text.rstrip(".")}; {REMEDIES[error.remedy].format(**facts)}.'


def program() -> str:
    """Return the command that started this program, for a message that repeats its command line."""
    return f'python {sys.argv[0]}' if sys.argv[0].endswith('.py') else osp.basename(sys.argv[0])


@contextlib.contextmanager
def exit_on_error(*errors: Type[Exception]) -> Iterator[None]:
    """Turn :class:`rmt_mm.errors.RMTError` and ``errors`` into one line on stderr and exit status 1.

    The traceback is printed too when the environment variable RMT_MM_DEBUG is set.
    """
    try:
        yield
    except (RMTError, *errors) as error:  # type: ignore[misc]  # mypy does not support starred handlers
        if os.environ.get('RMT_MM_DEBUG'):
            raise
        sys.exit(f'error: {describe(error)}')


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing share, with the names of OpenMMLab's own tools."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/NAME_OF_CONFIG)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=CfgOptions,
        default={},
        metavar='KEY=VALUE',
        help='change settings of the config, such as train_dataloader.batch_size=4 model.backbone.with_cp=True; '
        'a list is written "key=[a,b]"',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed.launch')


def use_amp(cfg: Config) -> None:
    """Train with automatic mixed precision (``--amp``)."""
    wrapper = cfg.get('optim_wrapper')
    if not isinstance(wrapper, dict):
        raise UsageError('--amp needs optim_wrapper in the config.')
    kind = wrapper.get('type', 'OptimWrapper')
    if type_name(kind) not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UsageError(f'--amp cannot change an optim_wrapper of type {type_name(kind)}: it takes OptimWrapper.')
    wrapper['type'] = 'AmpOptimWrapper'
    wrapper.setdefault('loss_scale', 'dynamic')


def use_tta(cfg: Config) -> None:
    """Test with augmentation (``--tta``), by the config's ``tta_model`` and ``tta_pipeline``.

    If a config has none, test the images and their mirror images in mmdet and mmpretrain, as these libraries' own test
    scripts do. mmseg's script has no default.
    """
    if not cfg.get('test_dataloader'):
        raise UsageError('--tta needs test_dataloader in the config.')
    pipelines = list(
        find_dicts(
            cfg.test_dataloader.dataset,
            lambda d: isinstance(d.get('pipeline'), (list, tuple)) and not {'dataset', 'datasets'} & set(d),
        )
    )
    _set_default_tta(cfg, pipelines)
    missing = [key for key in ('tta_model', 'tta_pipeline') if key not in cfg]
    if missing:
        raise UsageError(
            f'--tta needs {" and ".join(missing)} in the config, as '
            'configs/_base_/datasets/coco_detection.py and ade20k_512x512.py have them.'
        )
    if type_name(cfg.tta_model.type) == 'DetTTAModel' and any(
        key in ('mask_head', 'panoptic_head') and value for _, key, value in walk(cfg.model)
    ):
        raise UsageError('--tta: mmdet merges boxes of augmented images, but no masks; this model predicts masks.')
    for dataset in pipelines:
        dataset['pipeline'] = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def _set_default_tta(cfg: Config, pipelines: list) -> None:
    scope = library(cfg)
    if scope not in ('mmdet', 'mmpretrain') or not pipelines:
        return
    *steps, pack = pipelines[0].pipeline
    if scope == 'mmdet':
        # mmdet registers it with mmengine, whose registry finds it without a scope alone.
        model = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
        # Merging the predictions needs flip and flip_direction besides mmdet's usual keys.
        pack = dict(
            type='mmdet.PackDetInputs',
            meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction'),
        )
    else:
        model = dict(type='mmpretrain.AverageClsScoreTTA')
    flips = [dict(type=f'{scope}.RandomFlip', prob=prob) for prob in (1.0, 0.0)]
    for key, value in (
        ('tta_model', model),
        ('tta_pipeline', [*steps, dict(type='TestTimeAug', transforms=[flips, [pack]])]),
    ):
        if key not in cfg:
            cfg[key] = value
            note(f"the config has no {key}: that of {scope}'s own test script is taken.")


def draw_predictions(cfg: Config, folder: str) -> None:
    """Draw the predictions of a test into ``folder``, by the hook of the config's library (``--show-dir``)."""
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if hook is None:
        raise UsageError(
            "--show-dir needs default_hooks.visualization in the config, such as dict(type='DetVisualizationHook')."
        )
    folder = osp.abspath(folder)
    kind = type_name(hook.type)
    hook.interval = 1  # every image: mmseg's hook would draw a batch in 50, mmpretrain's an image in 5000
    if kind == 'DetVisualizationHook':
        hook.update(draw=True, test_out_dir=folder)
    elif kind == 'SegVisualizationHook':
        hook.update(draw=True)
        if not isinstance(cfg.get('visualizer'), dict):
            raise UsageError("--show-dir needs visualizer in the config, such as dict(type='SegLocalVisualizer').")
        cfg.visualizer.save_dir = folder
    else:
        hook.update(enable=True, out_dir=folder)


def check_drawing(dataset: Any) -> None:
    """Check that the predictions of a built data set can be drawn, a file for each image (``--show-dir``).

    Raises:
        UsageError: mmdet's visualiser would find fewer colours than classes.
    """
    for meta in metainfos(dataset):
        classes, palette = meta.get('classes') or (), meta.get('palette')
        if isinstance(palette, list) and len(palette) < len(classes):
            raise UsageError(
                f'--show-dir: metainfo.palette of the data set has {len(palette)} colours for {len(classes)} classes: '
                'give one for each class, or leave palette out.'
            )
    leaves = [leaf for leaf in find_datasets(dataset) if hasattr(leaf, 'get_data_info')]
    paths = [str(leaf.get_data_info(i).get('img_path')) for leaf in leaves for i in range(len(leaf))]
    twice = [name for name, count in Counter(map(osp.basename, paths)).items() if count > 1]
    if twice:
        first, second = [path for path in paths if osp.basename(path) == twice[0]][:2]
        note(
            f'--show-dir: {len(twice)} names occur more than once, such as {printable(first)} and {printable(second)}: '
            "the libraries' hooks write one file for a name, so that the last image replaces the others."
        )


def use_vis_backend(cfg: Config, name: str) -> None:
    """Write scalars and pictures to a visualiser backend of mmengine too (``--vis-backend``).

    Args:
        cfg (Config): of which ``visualizer`` is changed.
        name (str): such as ``'tensorboard'`` for ``TensorboardVisBackend``.

    Raises:
        UsageError: mmengine has no such backend, or its package is not installed.
    """
    backends = {key[: -len('VisBackend')].lower(): key for key in VISBACKENDS.module_dict if key.endswith('VisBackend')}
    if name.lower() not in backends:
        raise UsageError(f'--vis-backend {name}: mmengine has {", ".join(sorted(backends))}.')
    package = name.lower()
    if package != 'local' and find_spec(package) is None:
        raise UsageError(f'--vis-backend {name} needs the package {package}, which is not installed.')
    if not isinstance(cfg.get('visualizer'), dict):
        cfg.visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
    used = list(cfg.visualizer.get('vis_backends') or [])
    if all(type_name(backend['type']) != backends[package] for backend in used):
        cfg.visualizer.vis_backends = [*used, dict(type=backends[package])]


def use_auto_scale_lr(cfg: Config) -> None:
    """Scale the learning rate by actual batch size / ``auto_scale_lr.base_batch_size`` (``--auto-scale-lr``).

    Raises:
        UsageError: the config does not say which batch size its learning rate is for.
    """
    if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
        raise UsageError(
            '--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=N) in the config, N being the '
            'batch size that its learning rate is for.'
        )
    cfg.auto_scale_lr.enable = True
