"""The operators in plain torch: their specification, which other kernels are compared with.

Maps are (B, H, W, C) or, with heads, (B, H, W, heads, head_dim).
"""

from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dispatch import kernel, run
from .recorders import Call
from .tables import PositionTables


@kernel('to_image', 'plain')
def to_image(x: Tensor) -> Tensor:
    """Return a map (B, H, W, C) as a channels-last image (B, C, H, W), without a copy."""
    return x.permute(0, 3, 1, 2)


@kernel('linear', 'plain')
def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a Linear layer to the channels of a map."""
    return layer(x)


@kernel('rotate', 'plain')
def rotate(x: Tensor, tables: PositionTables) -> Tensor:
    """Rotate neighbouring channel pairs: (u0, u1) -> (u0 cos - u1 sin, u1 cos + u0 sin), in fp32 or above."""
    phases = tables.phases()
    u0, u1 = x.to(torch.promote_types(x.dtype, phases.dtype)).unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = phases.unbind(-1)
    return torch.stack((u0 * cos - u1 * sin, u1 * cos + u0 * sin), dim=-1).flatten(-2).to(x.dtype)


def split_qkv(qkv: Tensor, tables: PositionTables) -> Tuple[Tensor, Tensor, Tensor]:
    """Split queries, keys and values (B, H, W, 3C) into heads, and rotate queries and keys if the prior says so.

    Returns:
        tuple[Tensor]: queries, keys and values, (B, H, W, heads, head_dim); values are contiguous.
    """
    heads = len(tables.log_decay)
    qk, v = qkv.unflatten(-1, (3 * heads, tables.head_dim)).split((2 * heads, heads), dim=3)
    if tables.prior.rotation:
        qk = run('rotate', Call.of(qk), qk, tables)
    q, k = qk.chunk(2, dim=3)
    # With gradients, the copy keeps the backward pass from holding all of qkv.
    return q, k, v.contiguous()


@kernel('attend', 'plain')
def attend(qkv: Tensor, tables: PositionTables, decomposed: bool) -> Tuple[Tensor, Tensor]:
    """Attend along rows and then along columns, with the same queries and keys, or over the whole map."""
    q, k, v = split_qkv(qkv, tables)
    call = Call.of(q)
    if decomposed:
        rows = run('attend_lines', call, q, k, v, tables, 2)
        out = run('attend_lines', call, q, k, rows, tables, 1)
    else:
        out = run('attend_map', call, q, k, v, tables)
    return out.flatten(3), v.flatten(3)


@kernel('attend_lines', 'plain')
def attend_lines(q: Tensor, k: Tensor, v: Tensor, tables: PositionTables, dim: int) -> Tensor:
    """Compute softmax(Q K^T / sqrt(d) + log D) V within every row (dim 2) or column (dim 1)."""
    bias = tables.line(dim, q.dtype)
    if dim == 1:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    batch_and_lines = q.shape[:2]
    q, k, v = (t.flatten(0, 1).transpose(1, 2) for t in (q, k, v))  # (B * lines, heads, L, head_dim)
    out = _attend(q, k, v, bias, tables).transpose(1, 2).unflatten(0, batch_and_lines)
    return out.transpose(1, 2) if dim == 1 else out


@kernel('attend_map', 'plain')
def attend_map(q: Tensor, k: Tensor, v: Tensor, tables: PositionTables) -> Tensor:
    """Compute softmax(Q K^T / sqrt(d) + log D) V over the whole map."""
    height, width = q.shape[1:3]
    bias = tables.whole(q.dtype)
    q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))  # (B, heads, H * W, head_dim)
    return _attend(q, k, v, bias, tables).transpose(1, 2).unflatten(1, (height, width))


def _attend(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, tables: PositionTables) -> Tensor:
    """Attend in (B, heads, tokens, head_dim), with log D (heads, tokens, tokens)."""
    if tables.prior.decay == 'outside':  # the paper's Eq. 5
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        return (scores.softmax(-1) * log_decay.exp()) @ v
    # The fused kernels need a bias of four dimensions: with three, torch silently takes the slow path.
    return F.scaled_dot_product_attention(q, k, v, attn_mask=log_decay.unsqueeze(0))


@kernel('dwconv', 'plain')
def dwconv(layer: nn.Conv2d, x: Tensor, residual: bool, gelu: bool) -> Tensor:
    """Convolve each channel of a map (B, H, W, C), or of its GELU, by itself; add what is convolved if ``residual``."""
    image = run('to_image', Call.of(x), F.gelu(x) if gelu else x)
    out = nn.Conv2d.forward(layer, image)  # not layer(image): a forward pass of the layer calls this function
    # Add in place to the convolution's own result, not to a view of it: a view's backward would copy the map.
    return (out.add_(image) if residual else out).permute(0, 2, 3, 1).contiguous()


@kernel('ffn', 'plain')
def ffn(fc1: nn.Linear, dwconv: nn.Module, fc2: nn.Linear, x: Tensor, with_cp: bool) -> Tensor:
    """Compute fc2(dwconv(GELU(fc1(x)))), all of whose layers map (B, H, W, C) to (B, H, W, C')."""
    return fc2(dwconv(F.gelu(fc1(x))))
