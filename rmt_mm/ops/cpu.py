"""Kernels for the CPU.

Torch multiplies matrices with MKL and convolves with oneDNN. MKL leaves half of some processors unused: an AMD EPYC
with AVX-512 ran at 200 of 420 GFLOP/s, a later one at 225 of 480. In bf16 oneDNN does both, but torch copies the bias
to every token before a product. A map (B, H, W, C) is a channels-last image: a 1x1 convolution copies nothing.
"""

from typing import Any, Callable, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import depthwise, masa
from .dispatch import kernel, run
from .eager import attend_map_by_row, holds_bias
from .plain import attend_lines, attend_map, to_image
from .recorders import Call
from .tables import PositionTables


def _not_strided(call: Call, x: Tensor) -> Optional[str]:
    if not call.compiled or call.exported or call.grad:
        return 'it is for torch.compile without gradients'
    return None if len(x) == 1 and x.is_contiguous() else 'it is for a contiguous batch of one'


@kernel('to_image', 'strided', _not_strided)
def to_strided_image(x: Tensor) -> Tensor:
    """State the strides of a batch of one, which stay the same.

    Torch's Inductor gives it the stride 0, treats the image as one in (B, C, H, W) layout, and copies the map around
    the convolution.
    """
    _, height, width, channels = x.shape
    strides = (height * width * channels, 1, width * channels, channels)
    return to_image(x).as_strided((1, channels, height, width), strides)


def _has_bfloat16() -> bool:
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


_has_bfloat16._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compile takes the answer for a constant


def _not_convolution(call: Call, layer: nn.Module, x: Tensor) -> Optional[str]:
    if not call.plain:
        return 'a layer has hooks, or is of another class (quantised, parametrised, adapted)'
    if not isinstance(layer, nn.Linear):
        return 'the layer is not nn.Linear'
    if call.device != 'cpu' or call.dtype not in (torch.float32, torch.bfloat16):
        return f'oneDNN is for fp32 and bf16 on the CPU, and the map is {call.dtype} on {call.device}'
    if not torch.backends.mkldnn.enabled:
        return 'torch.backends.mkldnn is switched off'
    if call.dtype == torch.bfloat16 and not _has_bfloat16():
        return 'oneDNN has no bf16 on this processor'
    return call.why_not_run() if call.traced else None


def _has_gradients(call: Call, *args: Any) -> Optional[str]:
    return 'the gradients of a convolution take longer than those of a product' if call.grad else None


@kernel('linear', 'convolution', _not_convolution, _has_gradients)
def linear_by_convolution(layer: nn.Linear, x: Tensor) -> Tensor:
    """Compute a Linear layer of a map (B, H, W, C) as a 1x1 convolution."""
    image = run('to_image', Call.of(x), x)
    return F.conv2d(image, layer.weight[:, :, None, None], layer.bias).permute(0, 2, 3, 1)


def _heads(qkv: Tensor, tables: PositionTables) -> Tuple[Tensor, ...]:
    return qkv.unflatten(-1, (3, len(tables.log_decay), tables.head_dim)).unbind(3)


def _not_masa(call: Call, qkv: Tensor, tables: PositionTables, decomposed: bool) -> Optional[str]:
    recorded = call.why_not_run() if call.exported or call.traced else None
    return tables.why_plain() or recorded or masa.why_not(*_heads(qkv, tables))


@kernel('attend', 'masa', _not_masa)
def attend_masa(qkv: Tensor, tables: PositionTables, decomposed: bool) -> Tuple[Tensor, Tensor]:
    """Attend by the kernel in C++, which reads the projection where it is, rotates, and holds no bias or weights."""
    q, k, v = _heads(qkv, tables)
    phases = tables.phases() if tables.prior.rotation else None
    if decomposed:
        rows = masa.attend_lines(q, k, v, tables.log_decay, 2, phases)
        out = masa.attend_lines(q, k, rows, tables.log_decay, 1, phases)
    else:
        out = masa.attend_map(q, k, v, tables.log_decay, phases)
    return out.flatten(3), v.flatten(3)


def _not_float32(call: Call, q: Tensor, k: Tensor, v: Tensor, tables: PositionTables, *args: Any) -> Optional[str]:
    if (call.device, call.dtype, call.grad) != ('cpu', torch.bfloat16, True):
        return 'it is for gradients in bf16 on the CPU'
    return tables.why_plain() or call.why_not_run() or None


@kernel('attend_lines', 'float32', _not_float32)
def attend_lines_float32(q: Tensor, k: Tensor, v: Tensor, tables: PositionTables, dim: int) -> Tensor:
    """Attend in fp32: in bf16 on the CPU, the backward pass of torch's fused kernel takes several times as long."""
    return _in_float32(attend_lines, q, k, v, tables, dim)


@kernel('attend_map', 'float32', _not_float32)
def attend_map_float32(q: Tensor, k: Tensor, v: Tensor, tables: PositionTables) -> Tensor:
    """Attend in fp32, as :func:`attend_lines_float32`."""
    return _in_float32(attend_map if holds_bias(Call.of(q), q) else attend_map_by_row, q, k, v, tables)


def _in_float32(attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *args: Any) -> Tensor:
    with torch.autocast('cpu', enabled=False):
        return attend(q.float(), k.float(), v.float(), *args).to(q.dtype)


def _not_dwconv(call: Call, layer: nn.Conv2d, x: Tensor, *args: Any) -> Optional[str]:
    recorded = call.why_not_run() if call.exported or call.traced else None
    return recorded or depthwise.why_not(x, layer.weight, layer.bias)


@kernel('dwconv', 'fused', _not_dwconv)
def dwconv_fused(layer: nn.Conv2d, x: Tensor, residual: bool, gelu: bool) -> Tensor:
    """Convolve by the kernel in C++, with GELU before and the residual after it."""
    assert layer.bias is not None
    return depthwise.dwconv(x, layer.weight, layer.bias, residual, gelu)
