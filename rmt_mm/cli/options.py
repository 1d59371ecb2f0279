"""Options that training and testing share, and what they change in a config."""
import argparse
import contextlib
import os
import os.path as osp
import shlex
import sys
from typing import Iterator

from mmengine.config import Config, ConfigDict, DictAction

from ..errors import RMTError, UsageError, printable

CONVERTER = 'tools/model_converters/rmt_to_mm.py'
# What the tools add to an error, by its remedy and with its facts: the library names no tool and no flag.
REMEDIES = {
    'convert': f'convert it with `python {CONVERTER} SRC DST`',
    'allow_type': f'`python {CONVERTER} --allow-type {{type_name}} SRC DST` reads the rest and leaves them out',
    'in_channels': f'convert it with `python {CONVERTER} --in-channels {{channels}} SRC DST`',
    'task': f'`python {CONVERTER} --task {{task}} SRC DST` does that',
    'weights': f'`python {CONVERTER} --weights {{weights}} SRC DST` does that',
    'force': '--force replaces it',
    'label_maps': '`python tools/dataset_converters/make_token_labels.py` makes them',
}


def describe(error: BaseException) -> str:
    """Return the text of an error for a terminal, in one line, with what the tools know to do about it."""
    text = printable(' '.join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).splitlines()))
    if not isinstance(error, RMTError):
        return f'{text} (RMT_MM_DEBUG=1 prints the traceback)'
    if error.remedy not in REMEDIES:
        return text
    # Facts may come from a file, and end up in a shell.
    facts = {key: shlex.quote(str(value)) for key, value in error.facts.items()}
    return f'{text.rstrip(".")}; {REMEDIES[error.remedy].format(**facts)}.'


@contextlib.contextmanager
def one_sentence(*errors: type) -> Iterator[None]:
    """Turn :class:`rmt_mm.errors.RMTError` and ``errors`` into one line on stderr and exit status 1.

    The traceback is printed too when the environment variable RMT_MM_DEBUG is set.
    """
    try:
        yield
    except (RMTError, *errors) as error:
        if os.environ.get('RMT_MM_DEBUG'):
            raise
        sys.exit(f'error: {describe(error)}')


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing share, named as OpenMMLab's own tools name them."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/NAME_OF_CONFIG)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='change settings of the config, such as train_dataloader.batch_size=4 model.backbone.with_cp=True; '
        'a list is written "key=[a,b]"')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed.launch')


def use_amp(cfg: Config) -> None:
    """Train with automatic mixed precision (``--amp``)."""
    wrapper = cfg.optim_wrapper
    if wrapper.type not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UsageError(f'--amp cannot change an optim_wrapper of type {wrapper.type}: it takes OptimWrapper.')
    wrapper.type = 'AmpOptimWrapper'
    wrapper.setdefault('loss_scale', 'dynamic')


def use_tta(cfg: Config) -> None:
    """Test with the augmentation that the config describes in ``tta_model`` and ``tta_pipeline`` (``--tta``)."""
    missing = [key for key in ('tta_model', 'tta_pipeline') if key not in cfg]
    if missing:
        raise UsageError(f'--tta needs {" and ".join(missing)} in the config, as '
                         'configs/_base_/datasets/coco_detection.py and ade20k_512x512.py have them.')
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def draw_predictions(cfg: Config, folder: str) -> None:
    """Have the predictions of a test drawn into ``folder``, by the hook of the config's library (``--show-dir``)."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise UsageError("--show-dir needs default_hooks.visualization in the config, such as "
                         "dict(type='DetVisualizationHook').")
    folder = osp.abspath(folder)
    hook.interval = 1  # every image: mmseg's hook would draw a batch in 50, mmpretrain's an image in 5000
    if hook.type.endswith('DetVisualizationHook'):
        hook.update(draw=True, test_out_dir=folder)
    elif hook.type.endswith('SegVisualizationHook'):
        hook.update(draw=True)
        cfg.visualizer.save_dir = folder
    else:
        hook.update(enable=True, out_dir=folder)


def require_auto_scale_lr(cfg: Config) -> None:
    """Raise UsageError if the config does not say which batch size its learning rate is for."""
    if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
        raise UsageError('--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=N) in the config, N being the '
                         'batch size that its learning rate is for.')
