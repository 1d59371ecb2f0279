"""Build mmengine's Runner for the hardware at hand."""

import contextlib
import gc
import importlib
from pathlib import Path
from typing import Iterator

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ...errors import UsageError
from ...training.config_search import find_dicts
from .brief import BriefLogHook, BriefRunner
from .loop_settings import check_complete_loops
from .types import type_name

# BatchNorms synchronised between processes: mmengine's names for torch's and mmcv's, and the names of the classes.
SYNC_NORMS = ('SyncBN', 'MMSyncBN', 'SyncBatchNorm')


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Leave the process group, if there is one, at the end of the block: all processes at once, before they exit.

    The threads of gloo can abort a process (SIGABRT) that exits while they run. They end when the group is freed, that
    is, when nothing refers to it any more; ``destroy_process_group`` alone does not end them. So no Runner may outlive
    the block: create it in a function that the block calls.
    """
    done = False
    try:
        yield
        done = True
    finally:
        if dist.is_available() and dist.is_initialized():
            if done:
                gc.collect()  # a Runner and its DistributedDataParallel refer to each other, and hold the group
                dist.barrier()
            # After an error the other processes may be anywhere: NCCL could wait for them forever, and ends on exit.
            if done or dist.get_backend() == 'gloo':
                dist.destroy_process_group()


def build_runner(cfg: Config, brief: bool = False) -> Runner:
    """Build mmengine's Runner, or the one that the config names in ``runner_type``, for the hardware at hand.

    Args:
        cfg (Config): the config. Without a GPU, parts that need one are replaced in it.
        brief (bool): show one line per epoch, instead of the log. Default False.

    Raises:
        UsageError: a loop is incomplete, or ``brief`` is given for another runner than mmengine's.
    """
    check_complete_loops(cfg)
    if not torch.cuda.is_available():
        _adapt_to_cpu(cfg)
    if not brief:
        return Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)
    if 'runner_type' in cfg:
        raise UsageError(f"one line per epoch is shown by mmengine's Runner alone, not by {cfg.runner_type}.")
    runner = BriefRunner.from_cfg(cfg)
    runner.register_hook(BriefLogHook())
    return runner


def record_config(runner: Runner, cfg: Config) -> None:
    """Leave ``cfg`` in the work dir, in place of the config that ``runner`` was built from and has written."""
    runner.cfg = cfg
    runner.dump_config()
    runner.visualizer.add_config(cfg)


@contextlib.contextmanager
def keep_config(cfg: Config) -> Iterator[None]:
    """Keep the config of this name in the work dir, such as that of a training, which a new Runner replaces."""
    path = Path(cfg.work_dir, Path(cfg.filename).name)
    content = path.read_bytes() if path.is_file() else None
    try:
        yield
    finally:
        if content is not None and is_main_process():
            path.write_bytes(content)


def _adapt_to_cpu(cfg: Config) -> None:
    """Replace parts that run only on accelerators: mmengine's AMP wrapper, SyncBN between processes, NCCL."""
    if cfg.launcher == 'pytorch' and not dist.is_initialized():
        # Create the group before mmengine does, which would first choose a GPU for each process. Import this module
        # before that: its functions have the current group as a default argument, and a later import (torch._dynamo
        # imports it while a model is built) would hold the group until the interpreter exits.
        importlib.import_module('torch.distributed.nn.functional')
        dist.init_process_group('gloo')
        # Use mmengine's wrapper, but without its default of the GPU with the number of the rank.
        if cfg.get('model_wrapper_cfg') is None:
            cfg.model_wrapper_cfg = dict(
                type='MMDistributedDataParallel',
                broadcast_buffers=False,
                find_unused_parameters=cfg.get('find_unused_parameters', False),
            )
        cfg.model_wrapper_cfg.device_ids = None
    wrapper = cfg.get('optim_wrapper') or {}
    if type_name(wrapper.get('type')) == 'AmpOptimWrapper':
        print_log('No GPU found: training in fp32 instead of AMP.', logger='current')
        wrapper['type'] = 'OptimWrapper'
        for key in ('dtype', 'loss_scale', 'use_fsdp'):
            wrapper.pop(key, None)
    for norm in find_dicts(cfg.get('model', {}), lambda d: type_name(d.get('type')) in SYNC_NORMS):
        norm['type'] = 'BN'
    if cfg.get('sync_bn'):
        print_log('No GPU found: BatchNorms are not synchronised.', logger='current')
        cfg.sync_bn = None
