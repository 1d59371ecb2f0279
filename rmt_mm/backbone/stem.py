"""Stem and downsampling: the dense convolutions of RMT, each followed by a norm."""

from typing import List, Tuple

from mmcv.cnn import build_norm_layer
from torch import Tensor, nn
from torch.nn import functional as F

from ..arch import STEMS


def conv_norm(
    in_channels: int, out_channels: int, stride: int, norm_cfg: dict, kernel: int = 3
) -> Tuple[nn.Conv2d, nn.Module]:
    """Return a convolution with bias and the norm that follows it."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel % 2)
    return conv, build_norm_layer(norm_cfg, out_channels)[1]


class ConvStem(nn.Sequential):
    """Convolutions, each with a norm, and GELU between them: (B, in_channels, H, W) to (B, dim, ceil(H/s), ceil(W/s)).

    Args:
        in_channels (int): channels of the input image.
        dim (int): channels of the first stage.
        norm_cfg (dict): of the norms.
        form (str): a name in :data:`rmt_mm.arch.STEMS`. Default ``'conv'``: four of 3x3, of strides 2, 1, 2, 1.

    The names of its norms must not contain 'norm': the published recipes exempt parameters with that word in their
    names from weight decay, and the norms of the original's stem are not exempt.
    """

    def __init__(self, in_channels: int, dim: int, norm_cfg: dict, form: str = 'conv') -> None:
        layers: List[nn.Module] = []
        for width, kernel, stride in STEMS[form]:
            out_channels = int(width * dim)
            layers += [*conv_norm(in_channels, out_channels, stride, norm_cfg, kernel), nn.GELU()]
            in_channels = out_channels
        super().__init__(*layers[:-1])
        # A convolution without overlap has one stride of its kernel's size; its last patches are filled up with zeros.
        self.patch = kernel if kernel == stride else 1

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, dim, ceil(H/s), ceil(W/s)), s the product of the strides."""
        if self.patch > 1:
            x = F.pad(x, (0, -x.shape[3] % self.patch, 0, -x.shape[2] % self.patch))
        return super().forward(x)


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2 and a norm, between stages: (B, C, H, W) to (B, C', ceil(H/2), ceil(W/2))."""

    def __init__(self, in_channels: int, out_channels: int, norm_cfg: dict) -> None:
        super().__init__()
        self.conv, self.norm = conv_norm(in_channels, out_channels, 2, norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', ceil(H/2), ceil(W/2))."""
        return self.norm(self.conv(x))
