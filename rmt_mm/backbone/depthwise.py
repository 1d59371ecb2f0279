"""Depthwise convolutions: LCE and CPE of a block, and the convolution in its FFN."""

from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.recorders import is_plain, is_recorded
from .linear import to_image, uses_onednn


class WideDepthwiseConv(torch.autograd.Function):
    """Depthwise convolution of (B, C, H, W) with padding, whose backward pass suits oneDNN.

    OneDNN has a kernel for the weight gradient of depthwise convolutions with up to three columns. For more columns it
    computes dense groups of 16 channels, which takes up to ten times as long. So take three columns at a time.

    Inputs are x (B, C, H, W), weight (C, 1, K, K) with an odd K, and bias (C, ) or None; the output is (B, C, H, W).
    """

    MAX_COLUMNS = 3

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        x, weight = ctx.saved_tensors
        channels, _, _, columns = weight.shape
        pad = columns // 2

        def gradients(x: Tensor, weight: Tensor, pad_columns: int, *which: bool) -> Any:
            geometry = ([1, 1], [pad, pad_columns], [1, 1], False, [0, 0])  # stride, padding, dilation, transposed
            return torch.ops.aten.convolution_backward(grad, x, weight, None, *geometry, channels, which)

        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x = gradients(x, weight, pad, True, False, False)[0] if needs_x else None
        grad_weight = None
        if needs_weight:
            padded, parts = F.pad(x, (pad, pad)), []
            for first in range(0, columns, WideDepthwiseConv.MAX_COLUMNS):
                part = weight[..., first : first + WideDepthwiseConv.MAX_COLUMNS]
                seen = padded[..., first : first + x.shape[-1] + part.shape[-1] - 1]
                parts.append(gradients(seen, part, 0, False, True, False)[1])
            grad_weight = torch.cat(parts, dim=-1)
        return grad_x, grad_weight, grad.sum((0, 2, 3)) if needs_bias else None


def depthwise_conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a depthwise convolution of stride 1 to (B, C, H, W); it keeps the size.

    With gradients, in fp32 on the CPU, :class:`WideDepthwiseConv` computes it, unless the layer is of another class or
    has hooks: then it is called as a module.
    """
    is_plain_training = torch.is_grad_enabled() and is_plain(layer, nn.Conv2d) and not is_recorded()
    if is_plain_training and uses_onednn(x) and not torch.is_autocast_cpu_enabled():
        return WideDepthwiseConv.apply(x, layer.weight, layer.bias)
    return layer(x)


class ResidualDWConv(nn.Conv2d):
    """x + 3x3 depthwise convolution(x), of a (B, H, W, C) map."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim)
        self.residual = True

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        x = to_image(x)
        out = super().forward(x)
        if self.residual:
            # Add in place to the convolution's own result, not to a view of it: a view's backward would copy the map.
            out = out + x if is_recorded() else out.add_(x)
        return out.permute(0, 2, 3, 1)

    @torch.no_grad()
    def fold(self) -> None:
        """Fuse the addition of x into the convolution: add 1 at the kernel's centre."""
        if self.residual:
            self.weight[:, :, 1, 1] += 1
            self.residual = False
