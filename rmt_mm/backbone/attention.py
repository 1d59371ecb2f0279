"""Manhattan self-attention (MaSA): attention whose logits carry the log of a decay in the Manhattan distance.

The paper's Eq. 5 multiplies the softmax by the decay D and does not renormalise. The released code, and so every
checkpoint, adds log D to the logits *before* the softmax, which equals Eq. 5 followed by a renormalisation (the author
says so in the official repository's issue 21). This module computes the released form:

    MaSA(X) = softmax(Q K^T / sqrt(d) + log D) V,    D = gamma^(abs(y - y') + abs(x - x'))

with rotated Q and K. Decomposed, it attends along every row and then along every column, with the same Q and K.
"""

import functools
from importlib.util import find_spec
from typing import Any, Callable, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arch import log_decay
from .depthwise import depthwise_conv
from ..ops.recorders import is_compiling, may_call_opaque, may_overwrite, opaque_to_compilers
from .linear import channels_last_linear, split_linear, to_image
from ..ops.tables import PositionTables, coordinates, manhattan_bias_by_row, rotate

try:
    from torch.nn.attention.flex_attention import flex_attention
except ImportError:  # torch < 2.5
    flex_attention = None  # type: ignore[assignment]

# The full form holds a bias of up to this many elements (64 MiB in fp32), once for all blocks. Of a larger bias it
# holds a part, or on CUDA nothing.
MAX_BIAS_ELEMENTS = 2**24
# Without gradients, the CPU attends along lines of up to MAX_SHORT_LINE tokens by plain matrix products, over as many
# lines at a time as have SLICE_WEIGHTS attention weights, which stay in its cache. Torch's fused kernel is slower for
# them, because it takes every line of every head by itself. For longer lines it is faster.
MAX_SHORT_LINE = 192
SLICE_WEIGHTS = 2**18
# FlexAttention's kernels on CUDA are written in triton.
HAS_FLEX_KERNEL = flex_attention is not None and find_spec('triton') is not None


def attend_lines(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attend along every line of a batch of maps, with the decay in the distance along the line.

    Args:
        q, k, v (Tensor): (B, lines, L, heads, head_dim); tokens attend within their line of L.
        bias (Tensor): log D along a line, (heads, L, L).

    Returns:
        Tensor: (B, lines, L, heads, head_dim).
    """
    if may_call_opaque() and q.shape[2] <= MAX_SHORT_LINE and q.device.type == 'cpu' and q.dtype == torch.float32:
        return attend_short_lines(q, k, v, bias)
    batch_and_lines = q.shape[:2]
    q, k, v = (t.flatten(0, 1).transpose(1, 2) for t in (q, k, v))
    # The fused kernels need a bias of four dimensions: with three, torch silently takes the slow path.
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.unsqueeze(0))
    return out.transpose(1, 2).unflatten(0, batch_and_lines)


@opaque_to_compilers
def attend_short_lines(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Compute :func:`attend_lines` by plain matrix products, in slices of the lines."""
    heads, length, _ = bias.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    step = max(1, SLICE_WEIGHTS // bias.numel())  # lines of a slice, which may be of several images
    images = max(1, step // q.shape[1])
    weights = q.new_empty(min(step, q.shape[:2].numel()) * heads, length, length)
    # Torch's softmax is slow along rows shorter than its vectors of 16 numbers: let keys be rows, and queries columns.
    keys_first = length < 16
    maps = [t.transpose(2, 3) for t in (q, k, v, out)]  # (B, lines, heads, L, head_dim)
    for group in zip(*(t.split(images) for t in maps)):
        for query, key, value, result in zip(*(t.split(step, dim=1) for t in group)):
            query, key, value = (t.flatten(0, 2) for t in (query, key, value))
            part = weights[: len(query)]
            part.unflatten(0, (-1, heads)).copy_(bias)
            first, second = (key, query) if keys_first else (query, key)
            part.baddbmm_(first, second.transpose(1, 2), alpha=q.shape[-1] ** -0.5)  # the bias is symmetric
            torch.softmax(part, 1 if keys_first else 2, out=part)
            part = part.transpose(1, 2) if keys_first else part
            result.copy_(torch.bmm(part, value).view_as(result))
    return out


def attend_decomposed(q: Tensor, k: Tensor, v: Tensor, tables: PositionTables) -> Tensor:
    """Attend along rows, then along columns of the result. Tensors are (B, H, W, heads, head_dim)."""
    row_bias, column_bias = tables.lines(q.dtype)
    v = attend_lines(q, k, v, row_bias)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return attend_lines(q, k, v, column_bias).transpose(1, 2)


def attend_full(q: Tensor, k: Tensor, v: Tensor, tables: PositionTables) -> Tensor:
    """Attend over the whole map, with the decay in the Manhattan distance. Tensors are (B, H, W, heads, head_dim)."""
    _, height, width, heads, head_dim = q.shape
    return choose_full(height, width, heads, head_dim, q.is_cuda)(q, k, v, tables)


def choose_full(height: int, width: int, heads: int, head_dim: int, is_cuda: bool) -> Callable[..., Tensor]:
    """Return the function that attends over a whole map of this size."""
    # While torch.jit or torch.export records a program for any size, sizes are symbols and no integers: a comparison
    # would bind the program to the sizes that it is recorded with.
    if not isinstance(height, int) or heads * (height * width) ** 2 <= MAX_BIAS_ELEMENTS:
        return attend_full_at_once
    is_flex = is_cuda and HAS_FLEX_KERNEL and head_dim >= 16  # the smallest that the kernel takes
    return attend_full_flex if is_flex else attend_full_by_row


def attend_full_at_once(q: Tensor, k: Tensor, v: Tensor, tables: PositionTables) -> Tensor:
    """Compute :func:`attend_full` with the bias of all queries in memory."""
    height, width = q.shape[1:3]
    bias = tables.whole(q.dtype).unsqueeze(0)
    q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))  # (B, heads, H * W, head_dim)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return out.transpose(1, 2).unflatten(1, (height, width))


def attend_full_by_row(q: Tensor, k: Tensor, v: Tensor, tables: PositionTables) -> Tensor:
    """Compute :func:`attend_full` one row of queries at a time, without holding the bias of all queries at once."""
    if is_compiling() and may_call_opaque() and q.device.type == 'cpu':
        return attend_full_by_row_compiled(q, k, v, tables.log_decay)
    return attend_rows_of_queries(q, k, v, tables.by_row(q.dtype))


@opaque_to_compilers
def attend_full_by_row_compiled(q: Tensor, k: Tensor, v: Tensor, log_decay: Sequence[float]) -> Tensor:
    """Compute :func:`attend_full_by_row`. A compiler would hold the bias of all queries at once."""
    height, width = q.shape[1:3]
    return attend_rows_of_queries(q, k, v, manhattan_bias_by_row(tuple(log_decay), height, width, q.device, q.dtype))


def attend_rows_of_queries(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Compute :func:`attend_full_by_row` with the bias of :func:`rmt_mm.ops.tables.manhattan_bias_by_row`."""
    batch, height, width, heads, head_dim = q.shape
    q = q.transpose(2, 3)  # every row of queries is an item of a batch: (H, heads, W, head_dim)
    # Keys and values of the whole map, last row first: (B, heads, H * W, head_dim).
    k, v = (t.flip(1).flatten(1, 2).transpose(1, 2) for t in (k, v))
    rows = height
    if torch.is_grad_enabled():  # the backward pass holds gradients of keys and values for every row of queries
        rows = max(1, MAX_BIAS_ELEMENTS // (heads * height * width * head_dim))
    outs = []
    for image in range(batch):
        for part, part_bias in zip(q[image].split(rows), bias.split(rows)):
            key, value = (t[image].expand(len(part), -1, -1, -1) for t in (k, v))
            outs.append(F.scaled_dot_product_attention(part, key, value, attn_mask=part_bias))
    return torch.cat(outs).unflatten(0, (batch, height)).transpose(2, 3).contiguous()


@functools.lru_cache(1)
def compiled_flex_attention() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)  # uncompiled, it would hold the matrix of attention weights


def attend_full_flex(q: Tensor, k: Tensor, v: Tensor, tables: PositionTables) -> Tensor:
    """Compute :func:`attend_full` without any bias: FlexAttention's kernel computes log D from token indices."""
    height, width = q.shape[1:3]
    y, x = coordinates(height, width, q.device)
    decay = torch.tensor(tables.log_decay, dtype=torch.float32, device=q.device)

    def add_decay(score: Tensor, image: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + decay[head] * ((y[i] - y[j]).abs() + (x[i] - x[j]).abs())

    q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))  # (B, heads, H * W, head_dim)
    flex: Any = flex_attention if is_compiling() else compiled_flex_attention()
    return flex(q, k, v, score_mod=add_decay).transpose(1, 2).unflatten(1, (height, width))


class MaSA(nn.Module):
    """Manhattan self-attention with local context enhancement (LCE).

    Args:
        dim (int): channels C.
        num_heads (int): heads n; C / n must be an even integer.
        init_value (float): a of the decay gamma_i = 1 - 2^(-a - r * i / n).
        heads_range (float): r of the same formula.
        decomposed (bool): attend along rows, then columns, instead of over the whole map.
    """

    def __init__(self, dim: int, num_heads: int, init_value: float, heads_range: float, decomposed: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.log_decay = log_decay(num_heads, init_value, heads_range)
        self.decomposed = decomposed
        self.qkv = nn.Linear(dim, 3 * dim)
        self.lce = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.proj = nn.Linear(dim, dim)

    def position_tables(self, x: Tensor) -> PositionTables:
        """Return the tables for a map (B, H, W, C). All blocks of a stage may share them."""
        _, height, width, _ = x.shape
        return PositionTables(self.log_decay, height, width, self.head_dim, x.device)

    def forward(self, x: Tensor, tables: Optional[PositionTables] = None) -> Tensor:
        """Attend over a map.

        Args:
            x (Tensor): (B, H, W, C).
            tables (PositionTables, optional): position tables of the map. Default: those of :meth:`position_tables`.

        Returns:
            Tensor: (B, H, W, C).
        """
        dim, heads = x.shape[-1], (self.num_heads, self.head_dim)
        tables = tables or self.position_tables(x)
        qk, v = split_linear(self.qkv, x, (2 * dim, dim))
        qk = rotate(
            qk.unflatten(-1, (2 * heads[0], heads[1])),
            tables.phases(),
            overwrite=not qk.requires_grad and may_overwrite(self.qkv, nn.Linear),
        )
        q, k = qk.chunk(2, dim=3)
        attend = attend_decomposed if self.decomposed else attend_full
        out = attend(q, k, v.unflatten(-1, heads), tables).flatten(-2).permute(0, 3, 1, 2)
        lce = depthwise_conv(self.lce, to_image(v))
        out = lce.add_(out) if may_overwrite(self.lce, nn.Conv2d) else lce + out
        return channels_last_linear(self.proj, out.permute(0, 2, 3, 1))

    def multiply_adds(self, height: int, width: int) -> int:
        """Return the multiply-adds of the products of queries with keys and of weights with values, for one map.

        The count does not depend on the kernel. It leaves out the projections and LCE.
        """
        keys = height + width if self.decomposed else height * width  # per query
        return 2 * height * width * self.num_heads * self.head_dim * keys
