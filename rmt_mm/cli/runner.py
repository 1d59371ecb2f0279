"""Build mmengine's Runner for the hardware at hand."""
import atexit

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .search import find_dicts

# What mmengine's registries and the classes they build raise for a wrong config.
BUILD_ERRORS = (ValueError, TypeError, KeyError, AssertionError, ImportError, FileNotFoundError)


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
        cfg.setdefault('model_wrapper_cfg', dict(type='MMDistributedDataParallel', broadcast_buffers=False))
        cfg.model_wrapper_cfg.device_ids = None
    wrapper = cfg.get('optim_wrapper') or {}
    if wrapper.get('type') == 'AmpOptimWrapper':
        print_log('No GPU found: training in fp32 instead of AMP.', logger='current')
        wrapper['type'] = 'OptimWrapper'
        for key in ('dtype', 'loss_scale', 'use_fsdp'):
            wrapper.pop(key, None)
    for norm in find_dicts(cfg.get('model', {}), lambda d: d.get('type') == 'SyncBN'):
        norm['type'] = 'BN'

