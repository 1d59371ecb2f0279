"""The depthwise convolutions of RMT by the kernel in C++, on the CPU.

    rmt_mm::dwconv(x, weight, bias, residual=False, gelu=False) -> out

``gelu`` convolves GELU(x) (the exact one, with erf) in place of x; ``residual`` adds what is convolved, by adding one
to the kernel's centre, as ``switch_to_deploy`` does. The backward pass keeps ``x`` alone, and computes GELU again.
Arithmetic is in float32, whatever the dtype; results do not depend on the number of threads. Under autocast, x is cast
to its dtype, as by torch's convolutions. The operator is there once :func:`why_not` or :func:`dwconv` has loaded the
library (rmt_mm/ops/build.py).
"""

from typing import Optional

import torch
from torch import Tensor

from .build import NOT_BUILT, is_loaded, operator


def dwconv(x: Tensor, weight: Tensor, bias: Tensor, residual: bool = False, gelu: bool = False) -> Tensor:
    """Convolve each channel of a map by itself.

    Args:
        x (Tensor): (B, H, W, C), float32 or bfloat16, contiguous or a slice of the channels of a contiguous map; of
            other layouts a copy is made.
        weight (Tensor): (C, 1, 3, 3) or (C, 1, 5, 5), of a convolution of stride 1 that keeps the map's size.
        bias (Tensor): (C).
        residual (bool): add what is convolved. Default False.
        gelu (bool): convolve GELU(x). Default False.

    Returns:
        Tensor: (B, H, W, C), contiguous, of the dtype of x. Gradients are of first order.

    Raises:
        RuntimeError: :func:`why_not` has a reason, or shapes do not agree.
    """
    return operator('dwconv')(x, weight, bias, residual, gelu)


def why_not(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Optional[str]:
    """Say why the kernel does not take these tensors; None if it does."""
    if any(t is not None and t.device.type != 'cpu' for t in (x, weight, bias)):
        return f'the kernel is for the CPU, and the map is on {x.device}'
    if x.dtype not in (torch.float32, torch.bfloat16):
        return f'the kernel takes maps of float32 or bfloat16, and this one is {x.dtype}'
    if bias is None or weight.shape[1:] not in ((1, 3, 3), (1, 5, 5)):
        return 'the kernel takes depthwise kernels of 3x3 or 5x5, with bias'
    if x.shape[-1] % 8:
        return f'the kernel takes channels that are a multiple of 8, and there are {x.shape[-1]}'
    return None if is_loaded() else NOT_BUILT
