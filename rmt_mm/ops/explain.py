"""Print which kernels a model uses, and why not the others."""

from typing import Any, Mapping

import torch
from torch import nn

from .dispatch import Choice, record


@torch.no_grad()
def explain(model: nn.Module, *inputs: Any) -> str:
    """Run a model once, without gradients, and say which kernels its operators took.

    Args:
        model (nn.Module): a model that contains :class:`rmt_mm.RMT` or :class:`rmt_mm.backbone.MaSA`.
        *inputs: arguments of its forward pass, such as ``torch.zeros(1, 3, 800, 1344)``.

    Returns:
        str: a line per operator and kernel with the number of calls, and one per kernel that did not take them, with
        the reason.

    To explain other calls, such as a training step, run them inside ``with rmt_mm.ops.record() as choices`` and print
    ``rmt_mm.ops.table(choices)``.
    """
    with record() as choices:
        model(*inputs)
    return table(choices)


def table(choices: Mapping[Choice, int]) -> str:
    """Return the text of :func:`explain` for what :func:`rmt_mm.ops.record` has counted."""
    lines = []
    for (operator, kernel, reasons), count in choices.items():
        lines.append(f'{operator:<13} {kernel:<12} {count} calls')
        lines += [f'{"":<13} not {name:<8} {reason}' for name, reason in reasons]
    return '\n'.join(lines)
