"""Manhattan self-attention (MaSA) by the kernel in C++, on the CPU.

The operator ``rmt_mm::masa`` computes softmax(q k^T / sqrt(head_dim) + log_decay * distance) v, along lines or over the
whole map, with the decay in the Manhattan distance (released code; rmt_mm/backbone/attention.py has the formula). It
holds neither the weights nor a table of the distances. Sums are in float32, whatever the dtype. In bfloat16, where the
processor multiplies pairs (AVX512-BF16), rotated queries and keys, weights and their gradients are rounded to bfloat16
before they are multiplied; elsewhere they are float32. Results do not depend on the number of threads.

    rmt_mm::masa(q, k, v, log_decay, dim, phases=None) -> (out, logsum)

``dim`` is 2 for rows, 1 for columns, 0 for the whole map. ``logsum`` (B, H, W, heads), float32, is log2 of the sum of
exp(logits), which the backward pass needs. The operator is there once :func:`why_not` or a function below has loaded
the library (rmt_mm/ops/build.py).
"""

from typing import Optional, Sequence

import torch
from torch import Tensor

from .build import NOT_BUILT, is_loaded, operator

ROWS, COLUMNS, WHOLE_MAP = 2, 1, 0


def attend_lines(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Sequence[float], dim: int, phases: Optional[Tensor] = None
) -> Tensor:
    """Attend within every row or every column.

    Args:
        q, k, v (Tensor): (B, H, W, heads, head_dim), of one dtype: float32 or bfloat16. Any strides; where channels are
            not neighbours in memory, a copy is made.
        log_decay (Sequence[float]): log(gamma) of every head.
        dim (int): 2 attends within every row (along W), 1 within every column (along H).
        phases (Tensor, optional): :func:`rmt_mm.ops.tables.rotary_phases` of the map. Given, q and k are rotated as
            they are read. Default None: they are rotated already.

    Returns:
        Tensor: (B, H, W, heads, head_dim), contiguous, of the dtype of q. Gradients of q, k, v are of first order.

    Raises:
        RuntimeError: :func:`why_not` has a reason, shapes do not agree, or `dim` is another number.
    """
    if dim not in (ROWS, COLUMNS):
        raise RuntimeError(f'attend_lines: dim must be 1 or 2, got {dim}')
    return operator('masa')(q, k, v, log_decay, dim, phases)[0]


def attend_map(q: Tensor, k: Tensor, v: Tensor, log_decay: Sequence[float], phases: Optional[Tensor] = None) -> Tensor:
    """Attend over the whole map. Arguments, result and errors are those of :func:`attend_lines`."""
    return operator('masa')(q, k, v, log_decay, WHOLE_MAP, phases)[0]


def why_not(q: Tensor, k: Tensor, v: Tensor) -> Optional[str]:
    """Say why the kernel does not take these tensors; None if it does."""
    if not all(t.device.type == 'cpu' for t in (q, k, v)):
        return f'the kernel is for the CPU, and the tensors are on {q.device}'
    if q.dtype not in (torch.float32, torch.bfloat16) or not q.dtype == k.dtype == v.dtype:
        return f'the kernel takes float32 or bfloat16, and the tensors are {q.dtype}, {k.dtype} and {v.dtype}'
    if q.shape[-1] % 8:
        return f'the kernel takes head_dim that is a multiple of 8, and it is {q.shape[-1]}'
    return None if is_loaded() else NOT_BUILT
