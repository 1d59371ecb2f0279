"""Decomposed Manhattan self-attention (MaSA) in Triton, for CUDA. Importing this module imports triton.

:func:`attend_lines` computes softmax(q k^T / sqrt(head_dim) + log_decay * distance) v along rows or columns (released
code; rmt_mm/backbone/attention.py has the formula). It holds neither the weights nor a table of the distances: the
backward pass computes the weights again from q, k and the saved sums. It reads and writes maps with their strides, so
that columns need no copy. Sums are in fp32 and in a fixed order: equal inputs give equal bits.
"""

import functools
from typing import Any, List, Sequence, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .recorders import is_compiling

LOG2_E = tl.constexpr(1.4426950408889634)
MAX_BLOCK = 64  # tokens of a tile
SECOND_ORDER = (
    "this attention has gradients of first order only: for create_graph=True, use rmt_mm.ops.use(attend='plain')."
)


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
def _logits(q, k, i, j, n, scale, decay):
    """Return log2 of the weights before softmax, (queries, keys), -inf for keys outside."""
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
    Q, K, V, OUT, LOGSUM, DECAY, scale, n, lines, heads,
    q_image, q_line, q_token, q_head, k_image, k_line, k_token, k_head,
    v_image, v_line, v_token, v_head, o_image, o_line, o_token, o_head,
    HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Attend with a block of queries to all keys of its line."""
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
        logits = _logits(q, k, i, j, n, scale, decay)
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
    Q, K, V, OUT, LOGSUM, DECAY, GRAD, GRAD_Q, GRAD_K, GRAD_V, scale, n, lines, heads,
    q_image, q_line, q_token, q_head, k_image, k_line, k_token, k_head,
    v_image, v_line, v_token, v_head, o_image, o_line, o_token, o_head,
    HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr,
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
        logsum = tl.load(LOGSUM + i, mask=i < n, other=0.0)  # outside, `grad` is 0
        logits = _logits(q, own_k, i, own, n, scale2, decay)
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
        logsum = tl.load(LOGSUM + own, mask=own < n, other=0.0)
        for start in range(0, n, BLOCK):
            j = start + tl.arange(0, BLOCK)
            k = _load(K, j, k_token, n, HEAD_DIM, PADDED_DIM)
            v = _load(V, j, v_token, n, HEAD_DIM, PADDED_DIM)
            logits = _logits(own_q, k, own, j, n, scale2, decay)
            weights = tl.exp2(logits - logsum[:, None])
            grad_logits = weights * (tl.dot(grad, tl.trans(v)) - mean[:, None])
            grad_q += tl.dot(grad_logits.to(k.dtype), k)
    _store(GRAD_Q, grad_q * scale, own, o_token, n, HEAD_DIM, PADDED_DIM)


def _outputs(q: Tensor, dim: int) -> Tuple[Tensor, Tensor]:
    """Allocate the results of :func:`_attend`."""
    batch, height, width, heads, _ = q.shape
    lines = (height, width) if dim == 2 else (width, height)  # how many, and their tokens
    logsum = torch.empty((batch, lines[0], heads, lines[1]), dtype=torch.float32, device=q.device)
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), logsum


@functools.lru_cache(64)
def _decay_on(log_decay: Tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(log_decay, dtype=torch.float32, device=device)


def _launch(kernel: Any, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsum: Tensor, log_decay: Sequence[float],
            dim: int, *grads: Tensor, **constants: Any) -> None:  # fmt: skip
    batch, lines, heads, n = logsum.shape
    head_dim = q.shape[-1]
    block = min(MAX_BLOCK, max(16, triton.next_power_of_2(n)))
    order = (0, 3 - dim, dim, 3)  # strides of images, lines, tokens and heads
    if not q.numel():
        return
    with torch.cuda.device(q.device if q.is_cuda else -1):
        kernel[batch * lines * heads, triton.cdiv(n, block)](
            q, k, v, out, logsum, _decay_on(tuple(log_decay), q.device), *grads, head_dim**-0.5, n, lines, heads,
            *(t.stride(d) for t in (q, k, v, out) for d in order),
            HEAD_DIM=head_dim, PADDED_DIM=max(16, triton.next_power_of_2(head_dim)), BLOCK=block,
            num_warps=block // 16, **constants,
        )  # fmt: skip


def _readable(t: Tensor) -> Tensor:
    """Return a tensor whose channels are neighbours in memory."""
    return t if t.stride(4) == 1 else t.contiguous()


def _attend(q: Tensor, k: Tensor, v: Tensor, log_decay: List[float], dim: int) -> Tuple[Tensor, Tensor]:
    """Return the result, and log2 of the sums of exp(logits), (B, lines, heads, tokens), for the backward pass."""
    out, logsum = _outputs(q, dim)
    _launch(_forward, _readable(q), _readable(k), _readable(v), out, logsum, log_decay, dim)
    return out, logsum


def _differentiate(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsum: Tensor, log_decay: List[float], dim: int
) -> Tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, contiguous, given that of the result."""
    a, b, c = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    q, k, v = _readable(q), _readable(k), _readable(v)
    one_block = logsum.shape[-1] <= MAX_BLOCK
    _launch(_backward, q, k, v, out, logsum, log_decay, dim, grad.contiguous(), a, b, c, ONE_BLOCK=one_block)
    return a, b, c


class _AttendLines(torch.autograd.Function):
    """The eager form: an operator of torch.library takes twice as long to call."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, log_decay: List[float], dim: int) -> Tensor:
        out, logsum = _attend(q, k, v, log_decay, dim)
        ctx.save_for_backward(q, k, v, out, logsum)
        ctx.arguments = log_decay, dim
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Any, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError(SECOND_ORDER)
        return (*_differentiate(grad, *ctx.saved_tensors, *ctx.arguments), None, None)


# The form for compilers: an operator, of which they know the shapes and the gradients.
_attend_op = torch.library.custom_op('rmt_mm::attend_lines_triton', _attend, mutates_args=())
_differentiate_op = torch.library.custom_op('rmt_mm::attend_lines_triton_backward', _differentiate, mutates_args=())


@_attend_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, log_decay: List[float], dim: int) -> Tuple[Tensor, Tensor]:
    return _outputs(q, dim)


@_differentiate_op.register_fake
def _(grad: Tensor, q: Tensor, *args: Any) -> Tuple[Tensor, Tensor, Tensor]:
    a, b, c = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    return a, b, c


def _save(ctx: Any, inputs: Tuple[Any, ...], output: Tuple[Tensor, Tensor]) -> None:
    *qkv, ctx.log_decay, ctx.dim = inputs
    ctx.save_for_backward(*qkv, *output)


def _differentiate_compiled(ctx: Any, grad: Tensor, grad_logsum: Tensor) -> Tuple[Any, ...]:
    return (*_differentiate_op(grad, *ctx.saved_tensors, ctx.log_decay, ctx.dim), None, None)


_attend_op.register_autograd(_differentiate_compiled, setup_context=_save)


def attend_lines(q: Tensor, k: Tensor, v: Tensor, log_decay: Sequence[float], dim: int) -> Tensor:
    """Attend within every row or every column.

    Args:
        q, k, v (Tensor): (B, H, W, heads, head_dim), of one dtype: float16 or bfloat16. Any strides; a copy is made
            where channels are not neighbours in memory.
        log_decay (Sequence[float]): log(gamma) of every head.
        dim (int): 2 attends within every row (along W), 1 within every column (along H).

    Returns:
        Tensor: (B, H, W, heads, head_dim), contiguous, of the dtype of q. Gradients of q, k and v are of first order.
    """
    if is_compiling():
        return torch.ops.rmt_mm.attend_lines_triton(q, k, v, log_decay, dim)[0]
    return _AttendLines.apply(q, k, v, log_decay, dim)
