"""Settings of loops and optimizer that mmengine fails on in the first iteration, or blames on no config key."""

import difflib
import inspect
from logging import WARNING
from typing import Any, Iterator

import torch
from mmengine.config import Config
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIMIZERS

from ...errors import UsageError
from ...training.findings import Finding, report
from .notes import note
from .types import library, type_name

# mmengine takes all keys of a loop or none of them.
LOOPS = (
    ('train_dataloader', 'train_cfg', 'optim_wrapper'),
    ('val_dataloader', 'val_cfg', 'val_evaluator'),
    ('test_dataloader', 'test_cfg', 'test_evaluator'),
)
COUNTS = ('max_epochs', 'max_iters', 'val_interval')
PARAMWISE = {
    *('bias_decay_mult', 'bias_lr_mult', 'bypass_duplicate', 'custom_keys', 'dcn_offset_lr_mult'),
    *('dwconv_decay_mult', 'flat_decay_mult', 'norm_decay_mult'),
}


def check_complete_loops(cfg: Config) -> None:
    """Raise UsageError for a loop of which some keys are set, and others not or None."""
    for keys in LOOPS:
        missing = [key for key in keys if cfg.get(key) is None]
        if missing and len(missing) < len(keys):
            given = [key for key in keys if key not in missing]
            raise UsageError(
                f'the config sets {" and ".join(given)}, but not {" and ".join(missing)}: set all of '
                f'{", ".join(keys)}, or all to None.'
            )


def check_training_settings(cfg: Config) -> None:
    """Raise UsageError for the first mistake in the settings of a training, and print what may be one."""
    report(_find_mistakes(cfg), UsageError, tell=lambda finding: note(finding.text))


def _find_mistakes(cfg: Config) -> Iterator[Finding]:
    loop: Any = cfg.get('train_cfg') or {}
    for name in COUNTS if type_name(loop.get('type')) in ('', 'EpochBasedTrainLoop', 'IterBasedTrainLoop') else ():
        value = loop.get(name)
        if value is not None and (type(value) is not int or value < 1):
            yield Finding(f'train_cfg.{name} is {value!r}: it must be an integer of at least 1.')
    wrapper = cfg.get('optim_wrapper')
    if isinstance(wrapper, dict):
        yield from _find_mistakes_in_wrapper(wrapper, library(cfg))


def _find_mistakes_in_wrapper(wrapper: dict, scope: str) -> Iterator[Finding]:
    clip: Any = wrapper.get('clip_grad')
    if isinstance(clip, dict) and clip.get('type', 'norm') in ('norm', 'value'):
        function = getattr(torch.nn.utils, f'clip_grad_{clip.get("type", "norm")}_')
        parameters = list(inspect.signature(function).parameters)[1:]
        for key in clip:
            if key != 'type' and key not in parameters:
                yield Finding(
                    f'optim_wrapper.clip_grad does not take {key!r}: torch.nn.utils.{function.__name__} has '
                    f'{", ".join(parameters)}.'
                )
    constructor = DefaultOptimWrapperConstructor.__name__
    if type_name(wrapper.get('constructor') or constructor) != constructor:
        return
    optimizer: Any = wrapper.get('optimizer')
    if not isinstance(optimizer, dict):
        if wrapper.get('type') in (None, 'OptimWrapper', 'AmpOptimWrapper'):
            yield Finding("optim_wrapper has no optimizer: set one, such as optimizer=dict(type='AdamW', lr=1e-4).")
        return
    kind = optimizer.get('type')
    with OPTIMIZERS.switch_scope_and_registry(scope) as registry:
        if isinstance(kind, str) and registry.get(kind) is None:
            names = {name.lower(): name for name in OPTIMIZERS.module_dict}
            close = difflib.get_close_matches(kind.lower(), names, 1)
            cure = f'did you mean {names[close[0]]!r}?' if close else 'import its module by custom_imports.'
            yield Finding(f'optim_wrapper.optimizer: no optimizer is called {kind!r}: {cure}')
    for key in sorted(set(wrapper.get('paramwise_cfg') or {}) - PARAMWISE):
        close = difflib.get_close_matches(key, PARAMWISE, 1)
        meant = f'; was {close[0]!r} meant?' if close else '.'
        yield Finding(f'optim_wrapper.paramwise_cfg: {constructor} does not read {key!r}{meant}', WARNING)
