"""Kernels for CUDA."""

import functools
from importlib.util import find_spec
from typing import Any, Callable, Optional

import torch
from torch import Tensor

from .dispatch import kernel
from .eager import holds_bias, symbolic_sizes
from .recorders import Call, is_compiling
from .tables import PositionTables, coordinates

try:
    from torch.nn.attention.flex_attention import flex_attention
except ImportError:  # torch < 2.5
    flex_attention = None  # type: ignore[assignment]

HAS_TRITON = find_spec('triton') is not None  # in which FlexAttention's kernels are written
MIN_HEAD_DIM = 16  # the smallest that they take


def _not_flex(call: Call, q: Tensor, *args: Any) -> Optional[str]:
    head_dim = q.shape[-1]
    if call.device != 'cuda':
        return f'FlexAttention is for CUDA, and the map is on {call.device}'
    if flex_attention is None or not HAS_TRITON:
        return 'it needs torch >= 2.5 and triton'
    if head_dim < MIN_HEAD_DIM:
        return f'it needs heads of {MIN_HEAD_DIM} channels or more, and they have {head_dim}'
    return symbolic_sizes(call, q)


@functools.lru_cache(1)
def compiled_flex_attention() -> Callable[..., Tensor]:
    """Return FlexAttention compiled: uncompiled, it would hold the matrix of attention weights."""
    return torch.compile(flex_attention)


@kernel('attend_map', 'flex', _not_flex, holds_bias)
def attend_map_flex(
    q: Tensor, k: Tensor, v: Tensor, tables: PositionTables, flex: Optional[Callable[..., Any]] = None
) -> Tensor:
    """Attend without any bias in memory: FlexAttention's kernel computes log D from token indices."""
    height, width = q.shape[1:3]
    y, x = coordinates(height, width, q.device)
    decay = torch.tensor(tables.log_decay, dtype=torch.float32, device=q.device)

    def add_decay(score: Tensor, image: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + decay[head] * ((y[i] - y[j]).abs() + (x[i] - x[j]).abs())

    q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))  # (B, heads, H * W, head_dim)
    flex = flex or (flex_attention if is_compiling() else compiled_flex_attention())
    return flex(q, k, v, score_mod=add_decay).transpose(1, 2).unflatten(1, (height, width))
