"""Let mmengine's CheckpointHook write whole files, and check before training what it would fail on after an epoch."""

import contextlib
import inspect
import logging
import os
import os.path as osp
from typing import Any, Iterator, List, Optional, Set

from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ...errors import CheckpointError, UsageError
from ...training.findings import Finding, report


@register_backend('rmt_mm.whole', force=True)
class WholeFiles(LocalBackend):
    """mmengine's backend for local files, which writes a file whole or not at all.

    Unlike :func:`rmt_mm.atomic.replacing`, the temporary file has one name: when a training that was killed is resumed,
    it is written over, rather than left on the disk.

    CheckpointHook removes an old checkpoint (``max_keep_ckpts``, ``save_best``) before it writes the new one. Here the
    old one stays until the new one is written.
    """

    _outdated: List[str] = []  # of all instances: CheckpointHook removes by one, and the Runner writes by another

    def remove(self, filepath: str) -> None:
        """Remove a file after the next one is written."""
        self._outdated.append(filepath)

    def put(self, obj: bytes, filepath: str) -> None:
        """Write bytes to a file.

        Raises:
            CheckpointError: the file cannot be written; an earlier one is as it was.
        """
        part = f'{filepath}.part'
        try:
            super().put(obj, part)
            with open(part, 'rb') as file:
                os.fsync(file.fileno())
            os.replace(part, filepath)
            while self._outdated:
                path = self._outdated.pop()
                if path != filepath and osp.isfile(path):
                    super().remove(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise CheckpointError(
                f'{filepath} ({len(obj)} bytes) cannot be written: {error.strerror or error}. Earlier checkpoints are '
                'as they were; free space or choose another --work-dir, and continue with --resume.'
            ) from error


def write_whole(hook: CheckpointHook, work_dir: str) -> None:
    """Make a CheckpointHook write whole files, where it writes to this machine's file system by default settings."""
    if hook.backend_args is None and hook.file_client_args is None:
        if type(get_file_backend(hook.out_dir or work_dir)) is LocalBackend:
            hook.backend_args = dict(backend='rmt_mm.whole')


def check_saving(runner: Runner) -> None:
    """Raise UsageError for settings of a runner's CheckpointHook that are certainly wrong; make it write whole files.

    A validation that gives no value for ``save_best``, as where nothing was found, then saves no best checkpoint.
    """
    hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
    for hook in hooks:
        report(_find_problems(hook, runner), UsageError)
        write_whole(hook, runner.work_dir)
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
