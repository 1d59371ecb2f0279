"""Build mmengine's Runner for the hardware at hand, and find the checkpoint that it starts from."""
import atexit
import os.path as osp
from typing import Optional

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import find_latest_checkpoint

from .search import find_dicts
from .types import type_name

# What mmengine's registries and the classes they build raise for a wrong config.
BUILD_ERRORS = (ValueError, TypeError, KeyError, AssertionError, ImportError, FileNotFoundError)
# BatchNorms over all processes: mmengine's names for torch's and mmcv's, and the classes.
SYNC_NORMS = ('SyncBN', 'MMSyncBN', 'SyncBatchNorm')


def build_runner(cfg: Config) -> Runner:
    """Build mmengine's Runner, or the one that the config names in ``runner_type``, for the hardware at hand."""
    if not torch.cuda.is_available():
        _adapt_to_cpu(cfg)
    return Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)


def _adapt_to_cpu(cfg: Config) -> None:
    """Replace what runs on accelerators alone: mmengine's AMP wrapper, SyncBN between processes, NCCL."""
    if cfg.launcher == 'pytorch' and not torch.distributed.is_initialized():
        # Before mmengine does it, which would choose a GPU for each process first.
        torch.distributed.init_process_group('gloo')
        atexit.register(torch.distributed.destroy_process_group)  # gloo's threads must not outlive the interpreter
        # mmengine's wrapper, without the GPU that it would take its rank for.
        if cfg.get('model_wrapper_cfg') is None:
            cfg.model_wrapper_cfg = dict(
                type='MMDistributedDataParallel',
                broadcast_buffers=False,
                find_unused_parameters=cfg.get('find_unused_parameters', False))
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


def latest_checkpoint(work_dir: str) -> Optional[str]:
    """Return the checkpoint that training in ``work_dir`` wrote last, if there is one."""
    # mmengine's own function prints a warning about its absence; a first run with --resume is no mistake.
    return find_latest_checkpoint(work_dir) if osp.isfile(osp.join(work_dir, 'last_checkpoint')) else None
