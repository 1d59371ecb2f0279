"""What tools/train.py and tools/test.py share: from a command line to a config that is known to be runnable.

Mistakes that can be seen before a model is built are reported here, in one sentence each.
"""
import argparse
import atexit
import contextlib
import difflib
import inspect
import os
import os.path as osp
import sys
import tempfile
from typing import Iterator, Optional

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import find_latest_checkpoint

from .arch import resolve_arch
from .checkpoint import CheckpointError, force_safe_loading
from .pretrained import check_checkpoint_file

IMPORT_LINE = "custom_imports = dict(imports=['rmt_mm'], allow_failed_imports=False)"

# What mmengine's registries and the classes they build raise for a wrong config.
BUILD_ERRORS = (ValueError, TypeError, KeyError, AssertionError, ImportError, FileNotFoundError)


class UsageError(Exception):
    """A mistake that the user can mend; its text says what was wrong and what would be right."""


@contextlib.contextmanager
def one_sentence(*errors: type) -> Iterator[None]:
    """Turn :class:`UsageError` and ``errors`` into one line on stderr and exit status 1.

    The traceback is printed too when the environment variable RMT_MM_DEBUG is set.
    """
    try:
        yield
    except (UsageError, *errors) as error:
        if os.environ.get('RMT_MM_DEBUG'):
            raise
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        hint = '' if isinstance(error, UsageError) else ' (RMT_MM_DEBUG=1 prints the traceback)'
        sys.exit(f'error: {text}{hint}')


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


def load_config(args: argparse.Namespace) -> Config:
    """Read the config, apply the command line to it, and check what can be checked before anything is built.

    Raises:
        UsageError: a missing or broken config, an option or file that does not exist, a work dir that cannot be
            written, RMT without its import, a neck that does not fit the backbone.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    force_safe_loading()
    if not osp.isfile(args.config):
        raise UsageError(f'config {args.config} does not exist.')
    try:
        cfg = Config.fromfile(args.config)
    except (OSError, SyntaxError, NameError, KeyError, TypeError, ImportError) as error:
        raise UsageError(f'config {args.config} cannot be read: {type(error).__name__}: {error}') from error
    _check_options(cfg, args.cfg_options)
    cfg.merge_from_dict(args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('work_dirs', osp.splitext(osp.basename(args.config))[0])
    _check_work_dir(cfg.work_dir)
    _check_backbones(cfg, args.config)
    return cfg


def build_runner(cfg: Config) -> Runner:
    """Build mmengine's Runner, or the one that the config names in ``runner_type``, for the hardware at hand."""
    if not torch.cuda.is_available():
        _adapt_to_cpu(cfg)
    return Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)


def check_datasets(cfg: Config, *dataloaders: str) -> None:
    """Raise UsageError if files or folders that the named dataloaders read are not there."""
    for name in dataloaders:
        loaders = cfg.get(name) or []
        for loader in loaders if isinstance(loaders, list) else [loaders]:
            for dataset in _find(loader.get('dataset', {}), lambda d: 'data_root' in d or 'ann_file' in d):
                _check_dataset(dataset, name)


def check_annotations(cfg: Config, *evaluators: str) -> None:
    """Raise UsageError if an annotation file that a metric of the named evaluators reads is not there."""
    for name in evaluators:
        for metric in _find(cfg.get(name) or [], lambda d: d.get('ann_file')):
            if not osp.isfile(metric['ann_file']):
                raise UsageError(f'{name}: annotation file {metric["ann_file"]} does not exist; '
                                 'docs/datasets.md says how the data is laid out.')


def check_checkpoint(path: str) -> None:
    """Raise UsageError if mmengine could not load ``path`` as it is, or not safely."""
    try:
        check_checkpoint_file(path)
    except (CheckpointError, FileNotFoundError) as error:
        raise UsageError(str(error)) from error


def latest_checkpoint(work_dir: str) -> Optional[str]:
    """Return the checkpoint that training in ``work_dir`` wrote last, if there is one."""
    # mmengine's own function prints a warning about its absence; a first run with --resume is no mistake.
    return find_latest_checkpoint(work_dir) if osp.isfile(osp.join(work_dir, 'last_checkpoint')) else None


def _find(node, wanted) -> Iterator[dict]:
    """Yield the dicts below ``node`` for which ``wanted`` holds."""
    if isinstance(node, dict):
        if wanted(node):
            yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from _find(child, wanted)


def _check_options(cfg: Config, options: dict) -> None:
    """Refuse --cfg-options that the config has no place for; mmengine would add them and nothing would happen."""
    top_level = set(cfg) | set(inspect.signature(Runner.__init__).parameters) | {'auto_scale_lr', 'runner_type'}

    def fail(option: str, key: str, known) -> None:
        close = difflib.get_close_matches(key, [str(k) for k in known], 1)
        hint = f'did you mean {close[0]!r}?' if close else f'there are: {", ".join(map(str, sorted(known)))}.'
        raise UsageError(f'--cfg-options {option}: the config has no {key!r}; {hint}')

    for option in options:
        keys = option.split('.')
        if keys[0] not in top_level:
            fail(option, keys[0], top_level)
        node = cfg.get(keys[0])
        for i, key in enumerate(keys[1:], start=1):
            last = i == len(keys) - 1
            if isinstance(node, (list, tuple)):
                if not key.isdigit() or int(key) >= len(node):
                    fail(option, key, range(len(node)))
                node = node[int(key)]
            elif isinstance(node, dict) and key in node:
                node = node[key]
            elif isinstance(node, dict) and (last or 'type' in node):
                # A new argument is fine, since not all are in the config; what looks like a misspelling is not.
                if difflib.get_close_matches(key, node, 1, cutoff=0.9):
                    fail(option, key, node)
                break
            elif node is None:
                break
            else:
                fail(option, key, node if isinstance(node, dict) else ())


def _check_work_dir(work_dir: str) -> None:
    try:
        os.makedirs(work_dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=work_dir):
            pass
    except OSError as error:
        raise UsageError(f'work dir {work_dir} cannot be written ({error.strerror}): '
                         'name another one with --work-dir.') from error


def _check_backbones(cfg: Config, path: str) -> None:
    ours = list(_find(cfg.get('model', {}), lambda d: d.get('type') in ('RMT', 'mmengine.RMT')))
    imports = (cfg.get('custom_imports') or {}).get('imports', [])
    imports = [imports] if isinstance(imports, str) else imports
    if ours and not any(name.split('.')[0] == 'rmt_mm' for name in imports):
        raise UsageError(f"config {path} uses type='RMT' but does not import it: add the line {IMPORT_LINE}")
    for model in _find(cfg.get('model', {}), lambda d: d.get('backbone') in ours):
        backbone = model['backbone']
        try:
            dims = resolve_arch(backbone.get('arch', 'tiny')).embed_dims
        except (ValueError, TypeError) as error:
            raise UsageError(f'model.backbone: {error}') from error
        indices = backbone.get('out_indices', range(len(dims)))
        given = [dims[i] for i in indices if -len(dims) <= i < len(dims)]
        # Who takes the outputs: the neck, or the heads (of mmseg, with in_index) where there is none.
        for name in ['neck'] if model.get('neck') else [key for key in model if key.endswith('_head')]:
            parts = model[name] if isinstance(model[name], (list, tuple)) else [model[name]]
            for part in (part for part in parts if isinstance(part, dict)):
                wanted, index = part.get('in_channels'), part.get('in_index', range(len(given)))
                if isinstance(wanted, int) and isinstance(index, int):
                    wanted, index = [wanted], [index]
                if isinstance(wanted, (list, tuple)) and max(index, default=0) < len(given) and \
                        list(wanted) != [given[i] for i in index]:
                    raise UsageError(f'model.{name}.in_channels is {part["in_channels"]}, but the outputs '
                                     f'{list(indices)} of RMT {backbone.get("arch", "tiny")!r} have {given} channels.')


def _check_dataset(dataset: dict, loader: str) -> None:
    def fail(what: str, path: str) -> None:
        raise UsageError(f'{loader}: {what} {path} does not exist; docs/datasets.md says how the data is laid out.')

    root = dataset.get('data_root') or ''
    if root and not osp.isdir(root):
        fail('data folder', root)
    ann_file = dataset.get('ann_file')
    if ann_file and not osp.isfile(osp.join(root, ann_file)):
        fail('annotation file', osp.join(root, ann_file))
    prefix = dataset.get('data_prefix') or {}
    for folder in prefix.values() if isinstance(prefix, dict) else [prefix]:
        if folder and not osp.isdir(osp.join(root, folder)):
            fail('data folder', osp.join(root, folder))


def _adapt_to_cpu(cfg: Config) -> None:
    """Replace what runs on accelerators alone: mmengine's AMP wrapper, SyncBN between processes, NCCL."""
    if cfg.launcher == 'pytorch' and not torch.distributed.is_initialized():
        # Before mmengine does it, which would choose a GPU for each process first.
        torch.distributed.init_process_group('gloo')
        atexit.register(torch.distributed.destroy_process_group)  # gloo's threads must not outlive the interpreter
        # mmengine's wrapper, without the GPU that it would take its rank for.
        cfg.setdefault('model_wrapper_cfg', dict(type='MMDistributedDataParallel', broadcast_buffers=False))
        cfg.model_wrapper_cfg.device_ids = None
    wrapper = cfg.get('optim_wrapper') or {}
    if wrapper.get('type') == 'AmpOptimWrapper':
        print_log('No GPU found: training in fp32 instead of AMP.', logger='current')
        wrapper['type'] = 'OptimWrapper'
        for key in ('dtype', 'loss_scale', 'use_fsdp'):
            wrapper.pop(key, None)
    for norm in _find(cfg.get('model', {}), lambda d: d.get('type') == 'SyncBN'):
        norm['type'] = 'BN'


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
