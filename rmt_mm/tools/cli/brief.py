"""Show a training as one line per epoch. The log file in the work dir holds everything, as without it."""

import contextlib
import io
import logging
import sys
import time
from typing import Any, Dict, Optional

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from ..report.logs import MAIN_METRICS

SHOWN = 2  # metrics that are shown by their own names, where there is none of MAIN_METRICS
WINDOW = 100  # iterations whose mean loss is shown


class BriefRunner(Runner):
    """Runner that shows warnings and errors of the log alone."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.WARNING)
        return logger

    def train(self) -> nn.Module:
        stdout = sys.stdout
        try:
            return super().train()
        finally:  # an error in a validation leaves the hook's redirection
            sys.stdout = stdout


class BriefLogHook(Hook):
    """Print a line after each epoch, or each validation of a training that counts iterations: loss, metrics, time left.

    The time left includes validation. It is estimated from what this process has done.
    """

    priority = 'LOW'  # before CheckpointHook and what is prepared for it in the metrics

    def __init__(self) -> None:
        self._started = 0.0
        self._start_iter = 0
        self._output = contextlib.ExitStack()

    def before_train(self, runner: Runner) -> None:
        self._started, self._start_iter = time.monotonic(), runner.iter
        counts_epochs = isinstance(runner.train_loop, EpochBasedTrainLoop)
        length = f'{runner.max_epochs} epochs' if counts_epochs else f'{runner.max_iters} iterations'
        self._print(f'Training for {length}. The log is in {runner.log_dir}.')

    def after_train_epoch(self, runner: Runner) -> None:
        if not self._validates(runner):
            self._print_line(runner, runner.epoch + 1, {})

    def before_val_epoch(self, runner: Runner) -> None:
        # Evaluators print: pycocotools some ten lines.
        self._output.enter_context(contextlib.redirect_stdout(io.StringIO()))

    def after_val_epoch(self, runner: Runner, metrics: Optional[Dict[str, float]] = None) -> None:
        self._output.close()
        self._print_line(runner, runner.epoch, metrics or {})

    def _validates(self, runner: Runner) -> bool:
        """Tell whether a validation follows the epoch that has just ended."""
        loop = runner.train_loop
        if runner.val_loop is None:
            return False
        if not isinstance(loop, EpochBasedTrainLoop):
            return True
        done = runner.epoch + 1
        return done >= loop.val_begin and (done % loop.val_interval == 0 or done == runner.max_epochs)

    def _print_line(self, runner: Runner, epochs: int, metrics: Dict[str, float]) -> None:
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            parts = [f'epoch {epochs}/{runner.max_epochs}']
        else:
            parts = [f'iteration {runner.iter}/{runner.max_iters}']
        losses = runner.message_hub.log_scalars.get('train/loss')
        if losses is not None:
            parts.append(f'loss {losses.mean(WINDOW):.3f}')
        shown = {name: metrics[key] for key, name in MAIN_METRICS.items() if key in metrics}
        parts += [f'{name} {value:.3f}' for name, value in (shown or dict(list(metrics.items())[:SHOWN])).items()]
        done = runner.iter - self._start_iter
        left = (time.monotonic() - self._started) / max(1, done) * (runner.max_iters - runner.iter)
        parts.append(f'{left / 60:.0f} min left' if left >= 60 else f'{left:.0f} s left')
        self._print('   '.join(parts))

    def _print(self, line: str) -> None:
        if is_main_process():
            print(line, flush=True)
