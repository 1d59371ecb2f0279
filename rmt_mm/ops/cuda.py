"""Kernels for CUDA."""

import functools
from importlib.util import find_spec
from typing import Any, Callable, Optional, Tuple

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

HAS_TRITON = find_spec('triton') is not None  # in which FlexAttention and our kernel are written
MIN_HEAD_DIM = 16  # the smallest that FlexAttention takes
MAX_HEAD_DIM = 32  # the largest of the published sizes, and that our kernel has run with
MIN_CAPABILITY = (8, 0)  # of the GPU: bf16 in its matrix units
MIN_TOKENS = 2**14  # of a batch; the smallest with a measured gain had 25,088 (docs/performance.md)


def _capability(device: torch.device) -> Tuple[int, int]:
    return torch.cuda.get_device_capability(device)


_capability._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compile takes the answer for a constant


def _not_triton(call: Call, x: Tensor, k: Tensor, v: Tensor, tables: PositionTables, *args: Any) -> Optional[str]:
    if call.device != 'cuda':
        return f'it is for CUDA, and the map is on {call.device}'
    if call.dtype not in (torch.float16, torch.bfloat16):
        return f'it is for fp16 and bf16 (AMP), and the map is {call.dtype}'
    if not HAS_TRITON or not hasattr(torch.library, 'custom_op'):
        return 'it needs torch >= 2.4 and triton'
    if x.shape[-1] > MAX_HEAD_DIM:
        return f'it needs heads of {MAX_HEAD_DIM} channels or less, and they have {x.shape[-1]}'
    if _capability(x.device) < MIN_CAPABILITY:
        return 'it needs a GPU of compute capability {}.{}'.format(*MIN_CAPABILITY)
    return tables.why_plain() or (call.why_not_run() if call.exported or call.traced else None)


def _launching_costs_more(call: Call, q: Tensor, *args: Any) -> Optional[str]:
    if call.needs_grad or call.compiled:
        return 'no gain was measured for training or torch.compile'
    batch, height, width = q.shape[:3]
    return None if batch * height * width >= MIN_TOKENS else f'the batch has less than {MIN_TOKENS} tokens'


@kernel('attend_lines', 'triton', _not_triton, _launching_costs_more)
def attend_lines_triton(q: Tensor, k: Tensor, v: Tensor, tables: PositionTables, dim: int) -> Tensor:
    """Attend along lines by our kernel in Triton, which reads rows and columns where they are."""
    from .triton_masa import attend_lines  # imports triton

    return attend_lines(q, k, v, tables.log_decay, dim)


def _not_flex(call: Call, q: Tensor, k: Tensor, v: Tensor, tables: PositionTables) -> Optional[str]:
    head_dim = q.shape[-1]
    if call.device != 'cuda':
        return f'FlexAttention is for CUDA, and the map is on {call.device}'
    if flex_attention is None or not HAS_TRITON:
        return 'it needs torch >= 2.5 and triton'
    if head_dim < MIN_HEAD_DIM:
        return f'it needs heads of {MIN_HEAD_DIM} channels or more, and they have {head_dim}'
    return tables.why_plain() or symbolic_sizes(call, q)


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
