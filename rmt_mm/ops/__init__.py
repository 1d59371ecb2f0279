"""The operators of RMT, each computed by the kernel that suits the call.

Maps are (B, H, W, C), with heads (B, H, W, heads, head_dim). :mod:`rmt_mm.ops.plain` says in plain torch what each
operator computes. :mod:`rmt_mm.ops.dispatch` chooses the kernel: :func:`explain` prints what it chose and why, and
``with use(attend='plain')`` or the environment variable ``RMT_MM_OPS=attend=plain`` pins one. Operators take layers and
not weights, so that hooks, quantisation and adapters keep working.
"""

from typing import Tuple

from torch import Tensor, nn

from . import cpu, cuda, eager, plain  # noqa: F401  # they register their kernels
from .dispatch import PRIORITY, Choice, choose, record, run, use
from .eager import recompute
from .explain import explain, table
from .memory import keep_freed_memory
from .plain import split_qkv
from .recorders import Call, known
from .tables import PositionTables, Prior

__all__ = [
    'PRIORITY',
    'Call',
    'Choice',
    'PositionTables',
    'Prior',
    'attend',
    'attend_lines',
    'attend_map',
    'choose',
    'dwconv',
    'explain',
    'ffn',
    'keep_freed_memory',
    'known',
    'linear',
    'record',
    'recompute',
    'rotate',
    'split_qkv',
    'table',
    'to_image',
    'to_map',
    'use',
]


def to_image(x: Tensor) -> Tensor:
    """Return a map (B, H, W, C) as a channels-last image (B, C, H, W), without a copy."""
    return run('to_image', Call.of(x), x)


def to_map(x: Tensor) -> Tensor:
    """Return a channels-last image (B, C, H, W) as a contiguous map (B, H, W, C); other layouts are copied."""
    return x.permute(0, 2, 3, 1).contiguous()


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a Linear layer to the channels of a map: (B, H, W, in_features) to (B, H, W, out_features)."""
    return run('linear', Call.of(x, layer), layer, x)


def rotate(x: Tensor, tables: PositionTables) -> Tensor:
    """Rotate pairs of channels by the phase of their token (released code): (B, H, W, heads, head_dim) to the same.

    Computes in fp32 or above and returns the dtype of ``x``. See :func:`rmt_mm.ops.tables.rotary_phases`. Whether a
    model rotates (:class:`Prior`) is for :func:`attend` and :func:`split_qkv`.
    """
    return run('rotate', Call.of(x), x, tables)


def attend(qkv: Tensor, tables: PositionTables, decomposed: bool) -> Tuple[Tensor, Tensor]:
    """Rotate queries and keys, and attend: along every row and then along every column, or over the whole map.

    Args:
        qkv (Tensor): queries, keys and values, (B, H, W, 3C).
        tables (PositionTables): position tables of the map.
        decomposed (bool): attend along rows, then columns, with the same queries and keys.

    Returns:
        tuple[Tensor]: the result and the values, (B, H, W, C) each.
    """
    return run('attend', Call.of(qkv), qkv, tables, decomposed)


def attend_lines(q: Tensor, k: Tensor, v: Tensor, tables: PositionTables, dim: int) -> Tensor:
    """Attend within every line of a map, with the decay in the distance along it.

    Args:
        q, k, v (Tensor): (B, H, W, heads, head_dim), queries and keys rotated, as of :func:`split_qkv`.
        tables (PositionTables): position tables of the map.
        dim (int): the dimension of a line: 2 for rows, 1 for columns.

    Returns:
        Tensor: (B, H, W, heads, head_dim).
    """
    return run('attend_lines', Call.of(q), q, k, v, tables, dim)


def attend_map(q: Tensor, k: Tensor, v: Tensor, tables: PositionTables) -> Tensor:
    """Attend over the whole map, with the decay in the Manhattan distance. Arguments as in :func:`attend_lines`."""
    return run('attend_map', Call.of(q), q, k, v, tables)


def dwconv(layer: nn.Conv2d, x: Tensor, residual: bool = False, gelu: bool = False) -> Tensor:
    """Convolve each channel of a map by itself. The forward pass of depthwise layers calls it.

    Args:
        layer (nn.Conv2d): a depthwise convolution of stride 1 that keeps the map's size.
        x (Tensor): (B, H, W, C).
        residual (bool): add what is convolved. Default False.
        gelu (bool): convolve GELU(x). Default False.

    Returns:
        Tensor: (B, H, W, C).
    """
    return run('dwconv', Call.of(x), layer, x, residual, gelu)


def ffn(fc1: nn.Linear, dwconv: nn.Module, fc2: nn.Linear, x: Tensor, with_cp: bool = True) -> Tensor:
    """Compute fc2(dwconv(GELU(fc1(x)))) of a map (B, H, W, C).

    Args:
        fc1, dwconv, fc2 (nn.Module): layers of maps; ``dwconv`` looks at one row on either side.
        x (Tensor): (B, H, W, C).
        with_cp (bool): compute GELU and ``dwconv`` again in the backward pass instead of keeping their results.
            Default True.
    """
    return run('ffn', Call.of(x, fc1, dwconv, fc2), fc1, dwconv, fc2, x, with_cp)
