"""Check before training what mmengine's CheckpointHook would only fail on after an epoch of it."""

import inspect
import logging
from typing import Any, Iterator, List, Optional, Set

from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ...errors import UsageError
from ...training.findings import Finding, report


def check_saving(runner: Runner) -> None:
    """Raise UsageError for settings of a runner's CheckpointHook that are certainly wrong; let the others not stop it.

    A validation that gives no value for ``save_best``, as where nothing was found, then saves no best checkpoint.
    """
    hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
    for hook in hooks:
        report(_find_problems(hook, runner), UsageError)
    if any(_best_names(hook) for hook in hooks):
        runner.register_hook(MissingScoreHook())


def _best_names(hook: CheckpointHook) -> List[str]:
    return [name for name in hook.key_indicators if name != 'auto'] if hook.save_best else []


def _find_problems(hook: CheckpointHook, runner: Runner) -> Iterator[Finding]:
    known = inspect.signature(runner.save_checkpoint).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        for name in getattr(hook, 'args', None) or {}:
            if name not in known:
                yield Finding(f'default_hooks.checkpoint ({type(hook).__name__}) does not take {name!r}: remove it.')
    evaluator = runner.val_evaluator if runner.val_loop is not None else None
    metrics = evaluator.metrics if type(evaluator) is Evaluator else []
    prefixes = [m.prefix if type(m).evaluate is BaseMetric.evaluate else None for m in metrics]
    for name in _best_names(hook) if prefixes and all(prefixes) else []:
        if not name.startswith(tuple(f'{prefix}/' for prefix in prefixes)):
            likely = ' or '.join(repr(f'{prefix}/{name.rsplit("/", 1)[-1]}') for prefix in dict.fromkeys(prefixes))
            yield Finding(
                f'default_hooks.checkpoint.save_best is {name!r}, but all metrics of val_evaluator have names with a '
                f'prefix: set {likely}.'
            )
    keys = [known_keys(metric) for metric in metrics]
    for name in _best_names(hook) if keys and all(keys) else []:
        given = sorted(set().union(*keys))
        if name not in given:
            yield Finding(
                f'default_hooks.checkpoint.save_best is {name!r}, which val_evaluator does not give: set one of '
                f'{", ".join(given)}.'
            )


def known_keys(metric: BaseMetric) -> Set[str]:
    """Return the names of the values that a metric gives, or an empty set if they depend on the data or are unknown."""
    kind, names = f'{type(metric).__module__.split(".")[0]}.{type(metric).__name__}', []
    settings: Any = metric
    if kind == 'mmdet.CocoMetric' and not settings.classwise and set(settings.metrics) <= {'bbox', 'segm'}:
        items = settings.metric_items or ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l']
        names = [f'{name}_{item}' for name in settings.metrics for item in items]
    elif kind == 'mmpretrain.Accuracy' and len(settings.thrs) == 1:
        names = [f'top{k}' for k in settings.topk]
    elif kind == 'mmseg.IoUMetric':
        parts = dict(mIoU=['mIoU', 'mAcc'], mDice=['mDice', 'mAcc'], mFscore=['mFscore', 'mPrecision', 'mRecall'])
        names = ['aAcc', *(name for given in settings.metrics for name in parts[given])]
    return {f'{metric.prefix}/{name}' if metric.prefix else name for name in names}


class MissingScoreHook(Hook):
    """Tell CheckpointHook that a validation gave no value for ``save_best``: it would end in a KeyError."""

    priority = 89  # behind the hooks that log metrics, before CheckpointHook

    def after_val_epoch(self, runner: Runner, metrics: Optional[dict] = None) -> None:
        if not metrics:
            return
        for hook in runner.hooks:
            for name in _best_names(hook) if isinstance(hook, CheckpointHook) else ():
                if name not in metrics:
                    given = ', '.join(metrics)
                    print_log(
                        f'This validation gave no {name!r}, so that no best checkpoint is saved: either nothing was '
                        f'found, or default_hooks.checkpoint.save_best must be one of {given}.',
                        'current',
                        logging.WARNING,
                    )
                    metrics[name] = None
