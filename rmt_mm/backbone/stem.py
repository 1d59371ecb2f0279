"""Stem and downsampling: the dense convolutions of RMT, each followed by a norm."""

from typing import Optional, Tuple, cast

import torch
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_eval

from ..ops.recorders import is_plain, is_recorded
from .strips import strip_rows, strips

STRIP_BYTES = 2**23


def conv_norm(in_channels: int, out_channels: int, stride: int, norm_cfg: dict) -> Tuple[nn.Conv2d, nn.Module]:
    """Return a 3x3 convolution with bias and the norm that follows it."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1), build_norm_layer(norm_cfg, out_channels)[1]


def has_fixed_statistics(norm: nn.Module) -> bool:
    """Tell whether a norm is a BatchNorm that has, for evaluation, statistics independent of its input."""
    return isinstance(norm, _BatchNorm) and norm.running_mean is not None


def fold_norm(conv: nn.Conv2d, norm: nn.Module) -> Tuple[nn.Conv2d, nn.Module]:
    """Fuse BatchNorm into the convolution before it; return the convolution and an identity.

    Norms without fixed statistics are returned unchanged.
    """
    if not has_fixed_statistics(norm):
        return conv, norm
    return fuse_conv_bn_eval(conv.eval(), cast(_BatchNorm, norm.eval())), nn.Identity()


class ConvStem(nn.Sequential):
    """Four 3x3 convolutions of strides 2, 1, 2, 1, from (B, in_channels, H, W) to (B, dim, H/4, W/4).

    The names of its norms must not contain 'norm': the published recipes exempt parameters with that word in their
    names from weight decay, and the norms of the original's stem are not exempt.
    """

    # An output row depends on the input rows of the three output rows before and after it, and on none beyond.
    HALO = 3

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

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, dim, ceil(H/4), ceil(W/4)); large maps in strips of rows."""
        if not self._may_take_strips(x):
            return super().forward(x)
        batch, _, height, width = x.shape
        height = (height + 3) // 4
        # The first two maps are the largest, of half the image's size: two of their rows for a row of the output.
        row_bytes = 2 * ((width + 1) // 2) * cast(nn.Conv2d, self[0]).out_channels * x.element_size()
        rows = strip_rows(batch * height, row_bytes, STRIP_BYTES)
        if not rows:
            return super().forward(x)
        out: Optional[Tensor] = None
        for part, top in strips(batch, height, rows):
            start = max(0, top - self.HALO)
            strip = super().forward(x[part, :, 4 * start : 4 * (top + rows + self.HALO)])
            if out is None:  # autocast decides its dtype
                size = (batch, strip.shape[1], height, strip.shape[3])
                out = torch.empty(size, dtype=strip.dtype, device=x.device, memory_format=torch.channels_last)
            out[part, :, top : top + rows] = strip[:, :, top - start : top - start + rows]
        assert out is not None
        return out

    def _may_take_strips(self, x: Tensor) -> bool:
        if x.device.type != 'cpu' or torch.is_grad_enabled() or is_recorded():
            return False

        def fits_strips(module: nn.Module) -> bool:
            # Hooks, and norms with statistics of their input, need the whole map.
            is_fixed_norm = has_fixed_statistics(module) and not module.training
            is_local = type(module) in (nn.Conv2d, nn.GELU, nn.Identity) or is_fixed_norm
            return is_local and is_plain(module, type(module))

        return all(map(fits_strips, self))

    def fold(self) -> None:
        """Fuse every BatchNorm into the convolution before it."""
        for i, module in enumerate(self):
            if isinstance(module, nn.Conv2d):
                self[i], self[i + 1] = fold_norm(module, self[i + 1])


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2 and a norm, between stages: (B, C, H, W) to (B, C', ceil(H/2), ceil(W/2))."""

    def __init__(self, in_channels: int, out_channels: int, norm_cfg: dict) -> None:
        super().__init__()
        self.conv, self.norm = conv_norm(in_channels, out_channels, 2, norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def fold(self) -> None:
        """Fuse BatchNorm into the convolution before it."""
        self.conv, self.norm = fold_norm(self.conv, self.norm)
