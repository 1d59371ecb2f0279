"""Manhattan self-attention (MaSA): attention whose logits carry the log of a decay in the Manhattan distance.

The paper's Eq. 5 multiplies the softmax by the decay D and does not renormalise. The released code, and so every
checkpoint, adds log D to the logits *before* the softmax, which is the same followed by a renormalisation (the author
says so in the official repository's issue 21). This is the released form:

    MaSA(X) = softmax(Q K^T / sqrt(d) + log D) V,    D = gamma^(abs(y - y') + abs(x - x'))

with rotated Q and K. Decomposed, it runs along every row and then along every column, with the same Q and K.
"""
import functools
from importlib.util import find_spec
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from ..arch import Rates, log_decay_rates
from .layers import Linear
from .position import line_bias, manhattan_bias, places, rotary_phases, rotate, sliding_bias

# Up to this many elements (64 MiB in fp32) the whole form holds its bias, once for all blocks; above, a part of it, or
# on CUDA none.
MAX_BIAS_ELEMENTS = 2**24
HAS_TRITON = find_spec('triton') is not None  # which FlexAttention's kernels on CUDA are written in


def attend_lines(q: Tensor, k: Tensor, v: Tensor, rates: Rates) -> Tensor:
    """Attend along every line of a batch of maps, with the decay in the distance along the line.

    Args:
        q, k, v (Tensor): (B, lines, L, heads, head_dim); tokens attend within their line of L.
        rates (tuple[float]): log(gamma) of every head.

    Returns:
        Tensor: (B, lines, L, heads, head_dim).
    """
    # The fused kernels take four dimensions, and a bias of four: three would silently be the slow path.
    bias = line_bias(rates, q.shape[2], q.device, q.dtype).unsqueeze(0)
    out = F.scaled_dot_product_attention(*(t.flatten(0, 1).transpose(1, 2) for t in (q, k, v)), attn_mask=bias)
    return out.transpose(1, 2).unflatten(0, q.shape[:2])


def attend_decomposed(q: Tensor, k: Tensor, v: Tensor, rates: Rates) -> Tensor:
    """Attend along rows, then along columns of the result. Tensors are (B, H, W, heads, head_dim)."""
    v = attend_lines(q, k, v, rates)
    return attend_lines(*(t.transpose(1, 2) for t in (q, k, v)), rates).transpose(1, 2)


def attend_whole(q: Tensor, k: Tensor, v: Tensor, rates: Rates) -> Tensor:
    """Attend over the whole map, with the decay in the Manhattan distance. Tensors are (B, H, W, heads, head_dim)."""
    _, height, width, heads, head_dim = q.shape
    if heads * (height * width)**2 > MAX_BIAS_ELEMENTS:
        flex = q.is_cuda and HAS_TRITON and head_dim >= 16  # its smallest
        return (attend_whole_flex if flex else attend_whole_by_rows)(q, k, v, rates)
    bias = manhattan_bias(rates, height, width, q.device, q.dtype).unsqueeze(0)
    q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))  # (B, heads, H * W, head_dim)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return out.transpose(1, 2).unflatten(1, (height, width))


def attend_whole_by_rows(q: Tensor, k: Tensor, v: Tensor, rates: Rates) -> Tensor:
    """Do what :func:`attend_whole` does without ever holding the bias of all queries: they are taken row by row."""
    batch, height, width, heads, head_dim = q.shape
    bias = sliding_bias(rates, height, width, q.device, q.dtype)
    q = q.transpose(2, 3)  # every row of queries is an item of a batch: (H, heads, W, head_dim)
    k, v = (t.flip(1).flatten(1, 2).transpose(1, 2) for t in (k, v))  # which all meet (heads, H * W, head_dim)
    rows = height
    if torch.is_grad_enabled():  # the backward pass holds gradients of keys and values for every row of queries
        rows = max(1, MAX_BIAS_ELEMENTS // (heads * height * width * head_dim))
    outs = []
    for image in range(batch):
        for part, part_bias in zip(q[image].split(rows), bias.split(rows)):
            key, value = (t[image].expand(len(part), -1, -1, -1) for t in (k, v))
            outs.append(F.scaled_dot_product_attention(part, key, value, attn_mask=part_bias))
    return torch.cat(outs).unflatten(0, (batch, height)).transpose(2, 3)


@functools.lru_cache(1)
def compiled_flex_attention() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)  # uncompiled, it would hold the matrix of weights


def attend_whole_flex(q: Tensor, k: Tensor, v: Tensor, rates: Rates) -> Tensor:
    """Do what :func:`attend_whole` does without any bias: FlexAttention's kernel computes log D from token indices."""
    height, width = q.shape[1:3]
    y, x = places(height, width, q.device)
    rate = torch.tensor(rates, device=q.device)

    def add_decay(score: Tensor, image: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + rate[head] * ((y[i] - y[j]).abs() + (x[i] - x[j]).abs())

    q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))  # (B, heads, H * W, head_dim)
    flex = flex_attention if torch.compiler.is_compiling() else compiled_flex_attention()
    return flex(q, k, v, score_mod=add_decay).transpose(1, 2).unflatten(1, (height, width))


class MaSA(nn.Module):
    """Manhattan self-attention with local context enhancement (LCE).

    Args:
        dim (int): channels C.
        num_heads (int): heads n; C / n must be an even integer.
        init_value (float): a of the decay gamma_i = 1 - 2^(-a - r * i / n).
        heads_range (float): r of the same.
        decomposed (bool): attend along rows, then columns, instead of over the whole map.
    """

    def __init__(self, dim: int, num_heads: int, init_value: float, heads_range: float, decomposed: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.rates = log_decay_rates(num_heads, init_value, heads_range)
        self.attend = attend_decomposed if decomposed else attend_whole
        self.qkv = Linear(dim, 3 * dim)
        self.lce = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        _, height, width, dim = x.shape
        qk, v = self.qkv(x).split((2 * dim, dim), dim=-1)
        v = v.contiguous()  # of its own: the backward pass keeps the values, and not all that the projection gave
        heads = (self.num_heads, dim // self.num_heads)
        qk = qk.unflatten(-1, (2 * heads[0], heads[1]))
        qk = rotate(qk, rotary_phases(height, width, heads[1], x.device))
        q, k = qk.chunk(2, dim=3)
        out = self.attend(q, k, v.unflatten(-1, heads), self.rates).flatten(-2)
        out = self.lce(v.permute(0, 3, 1, 2)).add_(out.permute(0, 3, 1, 2))
        return self.proj(out.permute(0, 2, 3, 1))
