"""End a training whose loss or weights are no longer finite, before its checkpoints replace those of better times."""

import math
from typing import Any, Dict, List, Optional

import torch
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from ..checkpoints.state_dicts import find_not_finite, list_some
from ..errors import FOREIGN_ERRORS, DivergenceError


@HOOKS.register_module()
class DivergenceHook(Hook):
    """Stop a training whose loss is NaN or infinite.

    - With weights that are not finite, at once: no later iteration repairs them.
    - With finite weights, after ``patience`` iterations in a row: mixed precision skips the step of an iteration whose
      gradients overflow.

    The weights are also checked before each checkpoint and each validation, so that neither a checkpoint nor a best
    score is of such weights, and earlier checkpoints stay.

    Args:
        patience (int): Default 5.

    Raises:
        rmt_mm.errors.DivergenceError: the iteration, the parts of the loss, the first layer that is not finite, and
            the last checkpoint.
    """

    priority = 'LOW'  # behind the hooks that log the loss, before CheckpointHook

    def __init__(self, patience: int = 5) -> None:
        self.patience = patience
        self._count = 0

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Optional[Dict[str, Any]] = None
    ) -> None:
        losses = {name: value for name, value in (outputs or {}).items() if 'loss' in name}
        # The total is the sum of all parts. To read a value waits for the GPU, so read one.
        if _find_bad({'loss': losses['loss']} if 'loss' in losses else losses):
            self._count += 1
            names = find_not_finite(_tensors(runner))
            if names or self._count >= self.patience:
                parts = ', '.join(_find_bad(losses))
                layer = f'weights of {list_some(names, 1)}' if names else _find_layer(runner, data_batch)
                row = f' in {self._count} iterations in a row' if self._count > 1 else ''
                raise self._error(runner, runner.iter + 1, parts + row, layer)
            return
        self._count = 0
        if any(_saves(hook, runner) for hook in runner.hooks if isinstance(hook, CheckpointHook)):
            self._check_weights(runner, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        self._check_weights(runner, runner.iter)

    def before_val(self, runner: Runner) -> None:
        self._check_weights(runner, runner.iter)

    def _check_weights(self, runner: Runner, iteration: int) -> None:
        names = find_not_finite(_tensors(runner))
        if names:
            raise self._error(
                runner, iteration, f'{len(names)} tensors are NaN or infinite', f'weights of {list_some(names, 1)}'
            )

    def _error(self, runner: Runner, iteration: int, what: str, layer: str) -> DivergenceError:
        saved = [hook.last_ckpt for hook in runner.hooks if isinstance(hook, CheckpointHook) and hook.last_ckpt]
        if runner._resume and runner._load_from:
            saved.append(runner._load_from)
        rates = [rate for rates in runner.optim_wrapper.get_lr().values() for rate in rates]
        return DivergenceError(
            f'the training diverged at iteration {iteration}: {what}; the first that is not finite: {layer}. Lower '
            f'the learning rate (now up to {max(rates):.3g}), warm it up for longer, or set optim_wrapper.clip_grad; '
            'then '
            + (f'continue from {saved[0]}, which was written before.' if saved else 'begin anew: nothing was saved.')
        )


def _find_bad(losses: Dict[str, Any]) -> List[str]:
    """Return name and value of the losses that are not finite, such as ``loss_cls=nan``."""
    values = {name: value.item() if isinstance(value, Tensor) else value for name, value in losses.items()}
    return [f'{name}={value}' for name, value in values.items() if not math.isfinite(value)]


def _model(runner: Runner) -> nn.Module:
    model = runner.model
    return model.module if is_model_wrapper(model) else model


def _tensors(runner: Runner) -> Dict[str, Tensor]:
    """Return parameters and running statistics. Other buffers, such as masks of attention, may hold infinity."""
    model = _model(runner)
    statistics = {name: buffer for name, buffer in model.named_buffers() if 'running_' in name}
    return {**dict(model.named_parameters()), **statistics}


def _saves(hook: CheckpointHook, runner: Runner) -> bool:
    """Tell whether a hook that counts iterations writes a checkpoint after this one."""
    return not hook.by_epoch and (
        hook.every_n_train_iters(runner, hook.interval, hook.save_begin)
        or (hook.save_last and hook.is_last_train_iter(runner))
    )


def _find_layer(runner: Runner, data_batch: Any) -> str:
    """Run the model on a batch again, and name the first layer whose output is not finite."""
    if runner.distributed:  # the other processes would not take part
        return 'an output; one process alone would name its layer'
    model = _model(runner)
    found: List[str] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if find_not_finite(dict(enumerate(_flatten(output)))):  # type: ignore[arg-type]
                found.append(name)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad(), runner.optim_wrapper.optim_context(runner.model):
            model._run_forward(model.data_preprocessor(data_batch, True), mode='loss')  # type: ignore[operator]
    except FOREIGN_ERRORS:  # a loss or an assigner that refuses NaN: what was found before counts
        pass
    finally:
        for handle in handles:
            handle.remove()
    return f'output of {found[0]}' if found else 'the loss itself; all layers have finite outputs'


def _flatten(value: Any) -> List[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in items for tensor in _flatten(item)]
