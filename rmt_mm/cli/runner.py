"""Build mmengine's Runner for the hardware at hand."""

import contextlib
import gc
import importlib
from typing import Iterator

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .search import find_dicts
from .types import type_name

# What mmengine's registries and the classes they build raise for a wrong config.
BUILD_ERRORS = (ValueError, TypeError, KeyError, AssertionError, ImportError, FileNotFoundError)
# BatchNorms over all processes: mmengine's names for torch's and mmcv's, and the classes.
SYNC_NORMS = ('SyncBN', 'MMSyncBN', 'SyncBatchNorm')


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Leave the process group, if there is one, when the block ends: all processes together, before the interpreter.

    The threads of gloo can abort a process (SIGABRT) that ends while they run. They end with the group, which is when
    nothing refers to it any more; ``destroy_process_group`` alone does not end them. So the block must leave no Runner
    behind: call a function in it.
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
            # After an error the others may be anywhere: NCCL could wait for them forever, and ends with the process.
            if done or dist.get_backend() == 'gloo':
                dist.destroy_process_group()


def build_runner(cfg: Config) -> Runner:
    """Build mmengine's Runner, or the one that the config names in ``runner_type``, for the hardware at hand."""
    if not torch.cuda.is_available():
        _adapt_to_cpu(cfg)
    return Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)


def _adapt_to_cpu(cfg: Config) -> None:
    """Replace what runs on accelerators alone: mmengine's AMP wrapper, SyncBN between processes, NCCL."""
    if cfg.launcher == 'pytorch' and not dist.is_initialized():
        # Before mmengine does it, which would choose a GPU for each process first.
        # Defaults of its functions are the group that there is when it is imported (by torch._dynamo, in the middle of
        # building a model), and would hold the group until the interpreter ends.
        importlib.import_module('torch.distributed.nn.functional')
        dist.init_process_group('gloo')
        # mmengine's wrapper, without the GPU that it would take its rank for.
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
