"""Kernels for any device, most of them for less memory."""

from typing import Any, Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .dispatch import kernel, run
from .recorders import Call
from .tables import PositionTables

# The bias of a whole map is held up to this many elements (64 MiB in fp32), once for all blocks.
MAX_BIAS_ELEMENTS = 2**24


def recompute(function: Callable[..., Tensor], x: Tensor, *args: Any, **options: Any) -> Tensor:
    """Compute ``function(x, *args)`` without keeping its activations; the backward pass computes them again.

    Without gradients of ``x`` there is nothing to keep: the function is called as it is.

    Args:
        function (Callable): a module or function of tensors.
        x (Tensor): its first argument.
        *args: further arguments.
        **options: of ``torch.utils.checkpoint.checkpoint``.
    """
    if not Call.of(x).needs_grad:
        return function(x, *args)
    return checkpoint(function, x, *args, use_reentrant=False, **options)


def _not_complex(call: Call, x: Tensor, tables: PositionTables) -> Optional[str]:
    # Compilers fuse the real form. Exporters and transforms do not support complex numbers.
    return call.why_not_run() or None


@kernel('rotate', 'complex', _not_complex)
def rotate_complex(x: Tensor, tables: PositionTables) -> Tensor:
    """Rotate by one complex product, without copies."""
    phases = tables.phases()
    pairs = x.to(torch.promote_types(x.dtype, phases.dtype)).unflatten(-1, (-1, 2))
    product = torch.view_as_complex(pairs) * torch.view_as_complex(phases.to(pairs.dtype))
    return torch.view_as_real(product).flatten(-2).to(x.dtype)


def symbolic_sizes(call: Call, q: Tensor, *args: Any) -> Optional[str]:
    """Refuse maps whose sizes are symbols and no integers.

    While torch.jit or torch.export records a program for any size, a comparison would bind the program to the sizes
    that it is recorded with.
    """
    if call.hides_symbols:
        return 'a strict export does not tell whether the sizes are symbols'
    return None if isinstance(q.shape[1], int) else 'the sizes are symbols'


def holds_bias(call: Call, q: Tensor, *args: Any) -> Optional[str]:
    """Refuse maps whose bias is held as a whole."""
    _, height, width, heads, _ = q.shape
    is_small = heads * (height * width) ** 2 <= MAX_BIAS_ELEMENTS
    return 'the bias of the whole map is small enough to be held' if is_small else None


def _not_by_row(call: Call, q: Tensor, k: Tensor, v: Tensor, tables: PositionTables) -> Optional[str]:
    return tables.why_plain() or symbolic_sizes(call, q)


@kernel('attend_map', 'by_row', _not_by_row, holds_bias)
def attend_map_by_row(
    q: Tensor, k: Tensor, v: Tensor, tables: PositionTables, max_elements: int = MAX_BIAS_ELEMENTS
) -> Tensor:
    """Attend one row of queries at a time, with a window of one small table as bias."""
    batch, height, width, heads, head_dim = q.shape
    bias = tables.by_row(q.dtype)
    q = q.transpose(2, 3)  # every row of queries is an item of a batch: (H, heads, W, head_dim)
    # Keys and values of the whole map, last row first: (B, heads, H * W, head_dim).
    k, v = (t.flip(1).flatten(1, 2).transpose(1, 2) for t in (k, v))
    # The backward pass holds gradients of keys and values for every row of queries that is computed at once.
    rows = max(1, max_elements // (heads * height * width * head_dim))
    outs = []
    for image in range(batch):
        for part, part_bias in zip(q[image].split(rows), bias.split(rows)):
            key, value = (t[image].expand(len(part), -1, -1, -1) for t in (k, v))
            outs.append(F.scaled_dot_product_attention(part, key, value, attn_mask=part_bias))
    return torch.cat(outs).unflatten(0, (batch, height)).transpose(2, 3).contiguous()


def gelu_dwconv(dwconv: nn.Module, x: Tensor) -> Tensor:
    """Compute dwconv(GELU(x)) of a map (B, H, W, C), in one kernel if nobody watches the layer."""
    call = Call.of(x, dwconv)
    if call.plain:
        return run('dwconv', call, dwconv, x, dwconv.residual, True)
    return dwconv(F.gelu(x))


def _not_by_layers(call: Call, *args: Any) -> Optional[str]:
    return 'an exporter or a tracer records the call' if call.exported or call.traced else None


@kernel('ffn', 'layers', _not_by_layers)
def ffn_by_layers(fc1: nn.Linear, dwconv: nn.Module, fc2: nn.Linear, x: Tensor, with_cp: bool) -> Tensor:
    """Compute an FFN layer by layer, each by its kernel.

    The hidden maps take most of a training step's memory. Keep only the output of ``fc1``; the backward pass computes
    GELU and the depthwise convolution again, but not ``fc2``, whose result it does not need. Hooks would run in the
    second computation too: with hooks, keep everything.
    """

    def rest(x: Tensor) -> Tensor:
        return run('linear', Call.of(x, fc2), fc2, gelu_dwconv(dwconv, x))

    x = run('linear', Call.of(x, fc1), fc1, x)
    call = Call.of(x, dwconv, fc2)
    return recompute(rest, x, preserve_rng_state=False) if with_cp and call.plain and not call.compiled else rest(x)
