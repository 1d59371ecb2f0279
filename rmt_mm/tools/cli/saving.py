"""Check before training what mmengine's CheckpointHook would only fail on after an epoch of it."""

import inspect
import logging
from typing import Iterator, List, Optional

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
