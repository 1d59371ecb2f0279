"""Manhattan self-attention (MaSA) and its rotation in Triton, for CUDA. Importing this module imports triton.

:func:`masa` computes softmax(q k^T / sqrt(head_dim) + log_decay * distance) v, along lines or over the whole map, with
the decay in the Manhattan distance (released code; rmt_mm/backbone/attention.py has the formula). It holds neither the
weights nor a table of the distances: the backward pass computes the weights again from q, k and the saved sums. It
reads and writes maps (B, H, W, heads, head_dim) with their strides, so that columns need no copy. Sums are in fp32 and
in a fixed order: equal inputs give equal bits.
"""

import functools
import math
from typing import Any, List, NamedTuple, Sequence, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = tl.constexpr(1.4426950408889634)
MAX_BLOCK = 64  # tokens of a tile
ROTATED = 1024  # channels that a program rotates


# Attention -----------------------------------------------------------------------------------------------------------


@triton.jit
def _load(pointer, tokens, stride, n, HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr):
    """Load the channels of some tokens, (tokens, PADDED_DIM), with zeros outside."""
    channels = tl.arange(0, PADDED_DIM)
    inside = (tokens[:, None] < n) & (channels[None, :] < HEAD_DIM)
    return tl.load(pointer + tokens[:, None].to(tl.int64) * stride + channels[None, :], mask=inside, other=0.0)


@triton.jit
def _store(pointer, value, tokens, stride, n, HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr):
    channels = tl.arange(0, PADDED_DIM)
    inside = (tokens[:, None] < n) & (channels[None, :] < HEAD_DIM)
    place = pointer + tokens[:, None].to(tl.int64) * stride + channels[None, :]
    tl.store(place, value.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _logits(q, k, i, j, n, width, scale, decay, IS_MAP: tl.constexpr):
    """Return log2 of the weights before softmax, (queries, keys), -inf for keys outside."""
    if IS_MAP:
        distance = tl.abs((i // width)[:, None] - (j // width)[None, :])
        distance += tl.abs((i % width)[:, None] - (j % width)[None, :])
    else:
        distance = tl.abs(i[:, None] - j[None, :])
    logits = tl.dot(q, tl.trans(k)) * scale + distance.to(tl.float32) * decay
    return tl.where(j[None, :] < n, logits, float('-inf'))


@triton.jit
def _place(lines, heads):
    """Return image, line and head of a program."""
    item = tl.program_id(0).to(tl.int64)
    return item // (lines * heads), item // heads % lines, item % heads


@triton.jit
def _forward(
    Q, K, V, OUT, LOGSUM, DECAY, scale, n, width, lines, heads,
    q_image, q_line, q_token, q_head, k_image, k_line, k_token, k_head,
    v_image, v_line, v_token, v_head, o_image, o_line, o_token, o_head,
    HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, BLOCK: tl.constexpr, IS_MAP: tl.constexpr,
):  # fmt: skip
    """Attend with a block of queries to all keys of its line (or map)."""
    image, line, head = _place(lines, heads)
    Q += image * q_image + line * q_line + head * q_head
    K += image * k_image + line * k_line + head * k_head
    V += image * v_image + line * v_line + head * v_head
    OUT += image * o_image + line * o_line + head * o_head
    LOGSUM += tl.program_id(0).to(tl.int64) * n
    decay = tl.load(DECAY + head) * LOG2_E
    scale *= LOG2_E

    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    q = _load(Q, i, q_token, n, HEAD_DIM, PADDED_DIM)
    top = tl.full([BLOCK], float('-inf'), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    out = tl.zeros([BLOCK, PADDED_DIM], tl.float32)
    for start in range(0, n, BLOCK):
        j = start + tl.arange(0, BLOCK)
        k = _load(K, j, k_token, n, HEAD_DIM, PADDED_DIM)
        v = _load(V, j, v_token, n, HEAD_DIM, PADDED_DIM)
        logits = _logits(q, k, i, j, n, width, scale, decay, IS_MAP)
        new_top = tl.maximum(top, tl.max(logits, 1))
        weights = tl.exp2(logits - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weights, 1)
        out = out * shrink[:, None] + tl.dot(weights.to(v.dtype), v)
        top = new_top
    _store(OUT, out / total[:, None], i, o_token, n, HEAD_DIM, PADDED_DIM)
    tl.store(LOGSUM + i, top + tl.log2(total), mask=i < n)


@triton.jit
def _backward(
    Q, K, V, OUT, LOGSUM, DECAY, GRAD, GRAD_Q, GRAD_K, GRAD_V, scale, n, width, lines, heads,
    q_image, q_line, q_token, q_head, k_image, k_line, k_token, k_head,
    v_image, v_line, v_token, v_head, o_image, o_line, o_token, o_head,
    HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr, IS_MAP: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a block of keys and values, and of the block of queries of the same tokens.

    OUT and the gradients have the same strides.
    """
    image, line, head = _place(lines, heads)
    Q += image * q_image + line * q_line + head * q_head
    K += image * k_image + line * k_line + head * k_head
    V += image * v_image + line * v_line + head * v_head
    offset = image * o_image + line * o_line + head * o_head
    OUT += offset
    GRAD += offset
    GRAD_Q += offset
    GRAD_K += offset
    GRAD_V += offset
    LOGSUM += tl.program_id(0).to(tl.int64) * n
    decay = tl.load(DECAY + head) * LOG2_E
    scale2 = scale * LOG2_E

    own = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    own_k = _load(K, own, k_token, n, HEAD_DIM, PADDED_DIM)
    own_v = _load(V, own, v_token, n, HEAD_DIM, PADDED_DIM)
    grad_q = tl.zeros([BLOCK, PADDED_DIM], tl.float32)
    grad_k = tl.zeros([BLOCK, PADDED_DIM], tl.float32)
    grad_v = tl.zeros([BLOCK, PADDED_DIM], tl.float32)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        q = _load(Q, i, q_token, n, HEAD_DIM, PADDED_DIM)
        grad = _load(GRAD, i, o_token, n, HEAD_DIM, PADDED_DIM)
        out = _load(OUT, i, o_token, n, HEAD_DIM, PADDED_DIM)
        logsum = tl.load(LOGSUM + i, mask=i < n, other=float('inf'))  # so that weights outside are 0
        logits = _logits(q, own_k, i, own, n, width, scale2, decay, IS_MAP)
        weights = tl.exp2(logits - logsum[:, None])
        grad_v += tl.dot(tl.trans(weights.to(grad.dtype)), grad)
        mean = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1)
        grad_logits = tl.dot(grad, tl.trans(own_v)) - mean[:, None]
        grad_logits = (weights * grad_logits).to(q.dtype)
        grad_k += tl.dot(tl.trans(grad_logits), q)
        if ONE_BLOCK:
            grad_q += tl.dot(grad_logits, own_k)
    _store(GRAD_K, grad_k * scale, own, o_token, n, HEAD_DIM, PADDED_DIM)
    _store(GRAD_V, grad_v, own, o_token, n, HEAD_DIM, PADDED_DIM)

    if not ONE_BLOCK:
        own_q = _load(Q, own, q_token, n, HEAD_DIM, PADDED_DIM)
        grad = _load(GRAD, own, o_token, n, HEAD_DIM, PADDED_DIM)
        out = _load(OUT, own, o_token, n, HEAD_DIM, PADDED_DIM)
        mean = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1)
        logsum = tl.load(LOGSUM + own, mask=own < n, other=float('inf'))
        for start in range(0, n, BLOCK):
            j = start + tl.arange(0, BLOCK)
            k = _load(K, j, k_token, n, HEAD_DIM, PADDED_DIM)
            v = _load(V, j, v_token, n, HEAD_DIM, PADDED_DIM)
            logits = _logits(own_q, k, own, j, n, width, scale2, decay, IS_MAP)
            weights = tl.exp2(logits - logsum[:, None])
            grad_logits = weights * (tl.dot(grad, tl.trans(v)) - mean[:, None])
            grad_q += tl.dot(grad_logits.to(k.dtype), k)
    _store(GRAD_Q, grad_q * scale, own, o_token, n, HEAD_DIM, PADDED_DIM)


class _Layout(NamedTuple):
    """The lines of a map: how many, of how many tokens, and the dimensions of a tensor that step along them."""

    lines: int
    n: int
    line_dim: int
    token_dim: int

    @classmethod
    def of(cls, q: Tensor, dim: int) -> '_Layout':
        _, height, width = q.shape[:3]
        if dim == 0:  # the whole map: one line
            return cls(1, height * width, 1, 2)
        return cls(height, width, 1, 2) if dim == 2 else cls(width, height, 2, 1)

    def strides(self, t: Tensor) -> Tuple[int, int, int, int]:
        """Return the strides of images, lines, tokens and heads."""
        return t.stride(0), t.stride(self.line_dim), t.stride(self.token_dim), t.stride(3)


def _readable(t: Tensor, dim: int) -> Tensor:
    """Return a tensor as the kernels can read it: channels are neighbours and, of a whole map, rows follow each other."""
    follows = dim or t.shape[1] == 1 or t.stride(1) == t.shape[2] * t.stride(2)
    return t if t.stride(4) == 1 and follows else t.contiguous()


@functools.lru_cache(64)
def _decay_on(log_decay: Tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(log_decay, dtype=torch.float32, device=device)


def _launch(kernel: Any, tensors: Sequence[Tensor], q: Tensor, k: Tensor, v: Tensor, out: Tensor, dim: int,
            **constants: Any) -> None:  # fmt: skip
    batch, _, width, heads, head_dim = q.shape
    layout = _Layout.of(q, dim)
    block = min(MAX_BLOCK, max(16, triton.next_power_of_2(layout.n)))
    if not q.numel():
        return
    with torch.cuda.device(q.device if q.is_cuda else -1):
        kernel[batch * layout.lines * heads, triton.cdiv(layout.n, block)](
            *tensors, head_dim**-0.5, layout.n, width, layout.lines, heads,
            *(stride for t in (q, k, v, out) for stride in layout.strides(t)),
            HEAD_DIM=head_dim, PADDED_DIM=max(16, triton.next_power_of_2(head_dim)), BLOCK=block, IS_MAP=dim == 0,
            num_warps=max(1, block // 16), **constants,
        )  # fmt: skip


@torch.library.custom_op('rmt_mm::masa_triton', mutates_args=())
def masa(q: Tensor, k: Tensor, v: Tensor, log_decay: List[float], dim: int) -> Tuple[Tensor, Tensor]:
    """Attend along lines or over the whole map.

    Args:
        q, k, v (Tensor): (B, H, W, heads, head_dim), of one dtype: float16 or bfloat16. Any strides; a copy is made
            where channels are not neighbours in memory.
        log_decay (list[float]): log(gamma) of every head.
        dim (int): 2 attends within every row (along W), 1 within every column (along H), 0 over the whole map.

    Returns:
        tuple[Tensor]: the result, (B, H, W, heads, head_dim), contiguous, of the dtype of q; and log2 of the sum of
        exp(logits), (B, lines, heads, tokens of a line), float32, which the backward pass needs. Gradients of q, k
        and v are of first order.
    """
    out, logsum = _outputs(q, dim)
    q, k, v = (_readable(t, dim) for t in (q, k, v))
    _launch(_forward, (q, k, v, out, logsum, _decay_on(tuple(log_decay), q.device)), q, k, v, out, dim)
    return out, logsum


@torch.library.custom_op('rmt_mm::masa_triton_backward', mutates_args=())
def masa_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsum: Tensor, log_decay: List[float], dim: int
) -> Tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, contiguous, given that of the result."""
    grads = tuple(torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    grad, (q, k, v) = grad.contiguous(), (_readable(t, dim) for t in (q, k, v))
    decay = _decay_on(tuple(log_decay), q.device)
    one_block = _Layout.of(q, dim).n <= MAX_BLOCK
    _launch(_backward, (q, k, v, out, logsum, decay, grad, *grads), q, k, v, out, dim, ONE_BLOCK=one_block)
    return grads


def _outputs(q: Tensor, dim: int) -> Tuple[Tensor, Tensor]:
    """Allocate the results of :func:`masa`."""
    layout = _Layout.of(q, dim)
    logsum = torch.empty((q.shape[0], layout.lines, q.shape[3], layout.n), dtype=torch.float32, device=q.device)
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), logsum


@masa.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, log_decay: List[float], dim: int) -> Tuple[Tensor, Tensor]:
    return _outputs(q, dim)


@masa_backward.register_fake
def _(grad: Tensor, q: Tensor, *args: Any) -> Tuple[Tensor, Tensor, Tensor]:
    a, b, c = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    return a, b, c


def _save(ctx: Any, inputs: Tuple[Any, ...], output: Tuple[Tensor, Tensor]) -> None:
    *qkv, ctx.log_decay, ctx.dim = inputs
    ctx.save_for_backward(*qkv, *output)


def _differentiate(ctx: Any, grad: Tensor, grad_logsum: Tensor) -> Tuple[Any, ...]:
    return (*masa_backward(grad, *ctx.saved_tensors, ctx.log_decay, ctx.dim), None, None)


masa.register_autograd(_differentiate, setup_context=_save)


# Rotation ------------------------------------------------------------------------------------------------------------


@triton.jit
def _rotate(X, PHASES, OUT, total, tokens, x_token, CHANNELS: tl.constexpr, HEAD_DIM: tl.constexpr,
            SIGN: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Rotate some of the channels of a map, whose tokens are x_token apart, by the phases of their tokens."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    token, channel = index // CHANNELS, index % CHANNELS
    inside = index < total
    own = tl.load(X + token * x_token + channel, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(X + token * x_token + (channel ^ 1), mask=inside, other=0.0).to(tl.float32)
    phase = PHASES + (token % tokens) * HEAD_DIM + channel % HEAD_DIM // 2 * 2
    cos, sin = tl.load(phase, mask=inside, other=0.0), tl.load(phase + 1, mask=inside, other=0.0)
    turned = tl.where(channel % 2 == 0, -other, other) * (sin * SIGN)
    tl.store(OUT + index, (own * cos + turned).to(OUT.dtype.element_ty), mask=inside)


@torch.library.custom_op('rmt_mm::rotate_triton', mutates_args=())
def rotate(x: Tensor, phases: Tensor, inverse: bool) -> Tensor:
    """Rotate pairs of channels, (B, H, W, heads, head_dim), by (H, W, 1, head_dim / 2, 2), or back; contiguous."""
    batch, height, width, heads, head_dim = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    token = x.stride(2)
    if x.stride()[3:] != (head_dim, 1) or x.stride()[:2] != (height * width * token, width * token):
        x, token = x.contiguous(), heads * head_dim
    if x.numel():
        with torch.cuda.device(x.device if x.is_cuda else -1):
            _rotate[(triton.cdiv(x.numel(), ROTATED),)](
                x, phases, out, x.numel(), height * width, token, CHANNELS=heads * head_dim, HEAD_DIM=head_dim,
                SIGN=-1 if inverse else 1, BLOCK=ROTATED,
            )  # fmt: skip
    return out


@rotate.register_fake
def _(x: Tensor, phases: Tensor, inverse: bool) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _save_phases(ctx: Any, inputs: Tuple[Any, ...], output: Tensor) -> None:
    _, phases, ctx.inverse = inputs
    ctx.save_for_backward(phases)


def _rotate_back(ctx: Any, grad: Tensor) -> Tuple[Any, ...]:
    return rotate(grad, *ctx.saved_tensors, not ctx.inverse), None, None


rotate.register_autograd(_rotate_back, setup_context=_save_phases)
