"""Linear layers of maps (B, H, W, C): on the CPU, 1x1 convolutions."""

from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.recorders import is_compiling, is_exporting, is_plain, is_traced, may_overwrite

# Without gradients, the CPU computes the parts of a Linear layer's output one by one for maps of at least this many
# tokens: taking a part out of the whole output, which copies it, costs more than a second convolution.
MIN_SPLIT_TOKENS = 2**12


def to_image(x: Tensor) -> Tensor:
    """Return a map (B, H, W, C) as a channels-last image (B, C, H, W), without a copy."""
    image = x.permute(0, 3, 1, 2)
    if is_compiling() and not is_exporting() and not torch.is_grad_enabled() and len(x) == 1 and x.is_contiguous():
        # torch's Inductor gives a batch of one the stride 0, treats the image as one in (B, C, H, W) layout, and copies
        # the map around the convolution. State the strides, which stay the same.
        _, height, width, channels = x.shape
        image = image.as_strided(image.shape, (height * width * channels, 1, width * channels, channels))
    return image


def channels_last_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a Linear layer to the channels of a map: on the CPU as a 1x1 convolution.

    On the CPU torch multiplies matrices with MKL, which leaves half of some processors unused (an AMD EPYC with AVX-512
    ran at 200 of 420 GFLOP/s), and convolves with oneDNN, which does not. A (B, H, W, C) map is a channels-last image,
    so neither way copies it. The layers themselves stay ``nn.Linear``, which quantisation and adapters look for.

    Args:
        layer (nn.Linear): the layer. It is called as a module if it is of another class (quantised, parametrised,
            adapted), has hooks, or if the convolution is not the faster product.
        x (Tensor): (B, H, W, in_features).

    Returns:
        Tensor: (B, H, W, out_features).
    """
    if uses_onednn(x) and is_plain(layer, nn.Linear) and not is_traced():
        return linear_by_convolution(x, layer.weight, layer.bias)
    return layer(x)


def split_linear(layer: nn.Linear, x: Tensor, sizes: Tuple[int, ...]) -> Tuple[Tensor, ...]:
    """Apply a Linear layer to the channels of a map, and split its output.

    On the CPU without gradients, every part is a convolution of its own, which writes contiguous memory: taking a part
    out of the whole output would copy it.

    Args:
        layer (nn.Linear): the layer.
        x (Tensor): (B, H, W, in_features).
        sizes (tuple[int]): channels of the parts, ``out_features`` together.

    Returns:
        tuple[Tensor]: the parts, (B, H, W, size); the last one is contiguous.
    """
    by_part = uses_onednn(x) and not torch.is_grad_enabled() and may_overwrite(layer, nn.Linear)
    if by_part and x.shape[:3].numel() >= MIN_SPLIT_TOKENS:
        weights = layer.weight.split(sizes)
        biases = layer.bias.split(sizes) if layer.bias is not None else [None] * len(sizes)
        return tuple(linear_by_convolution(x, weight, bias) for weight, bias in zip(weights, biases))
    *parts, last = channels_last_linear(layer, x).split(sizes, dim=-1)
    # With gradients, the copy keeps the backward pass from holding the whole output.
    return (*parts, last.contiguous())


def uses_onednn(x: Tensor) -> bool:
    """Tell whether oneDNN convolves a map (fp32 on the CPU): faster as a 1x1 convolution than as a matrix product."""
    return x.device.type == 'cpu' and x.dtype == torch.float32 and bool(torch.backends.mkldnn.enabled)


def linear_by_convolution(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    """Compute ``F.linear`` of a map (B, H, W, C) as a 1x1 convolution."""
    return F.conv2d(to_image(x), weight[:, :, None, None], bias).permute(0, 2, 3, 1)
