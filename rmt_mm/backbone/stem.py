"""Stem and downsampling: the dense convolutions of RMT, each followed by a norm."""

from typing import Tuple

from mmcv.cnn import build_norm_layer
from torch import Tensor, nn


def conv_norm(in_channels: int, out_channels: int, stride: int, norm_cfg: dict) -> Tuple[nn.Conv2d, nn.Module]:
    """Return a 3x3 convolution with bias and the norm that follows it."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1), build_norm_layer(norm_cfg, out_channels)[1]


class ConvStem(nn.Sequential):
    """Four 3x3 convolutions of strides 2, 1, 2, 1, from (B, in_channels, H, W) to (B, dim, ceil(H/4), ceil(W/4)).

    The names of its norms must not contain 'norm': the published recipes exempt parameters with that word in their
    names from weight decay, and the norms of the original's stem are not exempt.
    """

    def __init__(self, in_channels: int, dim: int, norm_cfg: dict) -> None:
        super().__init__(
            *conv_norm(in_channels, dim // 2, 2, norm_cfg),
            nn.GELU(),
            *conv_norm(dim // 2, dim // 2, 1, norm_cfg),
            nn.GELU(),
            *conv_norm(dim // 2, dim, 2, norm_cfg),
            nn.GELU(),
            *conv_norm(dim, dim, 1, norm_cfg),
        )


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2 and a norm, between stages: (B, C, H, W) to (B, C', ceil(H/2), ceil(W/2))."""

    def __init__(self, in_channels: int, out_channels: int, norm_cfg: dict) -> None:
        super().__init__()
        self.conv, self.norm = conv_norm(in_channels, out_channels, 2, norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', ceil(H/2), ceil(W/2))."""
        return self.norm(self.conv(x))
