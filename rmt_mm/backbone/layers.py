"""The layers around attention: Linear layers of maps, stem, downsampling, depthwise convolution and FFN."""
from typing import Tuple

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Linear(nn.Linear):
    """``nn.Linear`` over the channels of a map, with its arguments and parameters.

    On the CPU torch multiplies matrices with MKL, which leaves half of some processors unused (an AMD EPYC with AVX-512
    ran at 200 of 420 GFLOP/s), and convolves with oneDNN, which does not. A (B, H, W, C) map is a channels-last image,
    so neither way copies it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, in_features) to (B, H, W, out_features)."""
        if x.device.type == 'cpu' and x.dtype == torch.float32 and torch.backends.mkldnn.enabled:
            return F.conv2d(x.permute(0, 3, 1, 2), self.weight[:, :, None, None], self.bias).permute(0, 2, 3, 1)
        return super().forward(x)


def conv_norm(in_channels: int, out_channels: int, stride: int, norm_cfg: dict) -> Tuple[nn.Module, nn.Module]:
    """Return a 3x3 convolution with bias and the norm that follows it."""
    return (nn.Conv2d(in_channels, out_channels, 3, stride, padding=1), build_norm_layer(norm_cfg, out_channels)[1])


class ConvStem(nn.Sequential):
    """Four 3x3 convolutions of strides 2, 1, 2, 1, from (B, in_channels, H, W) to (B, dim, H/4, W/4).

    Its norms have no 'norm' in their names, on purpose: the published recipes exempt parameters from weight decay by
    that word, and the original's stem is not among them.
    """

    def __init__(self, in_channels: int, dim: int, norm_cfg: dict) -> None:
        super().__init__(
            *conv_norm(in_channels, dim // 2, 2, norm_cfg), nn.GELU(),
            *conv_norm(dim // 2, dim // 2, 1, norm_cfg), nn.GELU(),
            *conv_norm(dim // 2, dim, 2, norm_cfg), nn.GELU(),
            *conv_norm(dim, dim, 1, norm_cfg))  # yapf: disable


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2 and a norm, between stages: (B, C, H, W) to (B, C', ceil(H/2), ceil(W/2))."""

    def __init__(self, in_channels: int, out_channels: int, norm_cfg: dict) -> None:
        super().__init__()
        self.conv, self.norm = conv_norm(in_channels, out_channels, 2, norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class ResidualDWConv(nn.Conv2d):
    """x + 3x3 depthwise convolution(x), of a (B, H, W, C) map."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim)
        self.residual = True

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        out = super().forward(x)
        if self.residual:
            # In place on the convolution's own result, not on a view of it: a view's backward would copy the map.
            out = out.add_(x)
        return out.permute(0, 2, 3, 1)

    @torch.no_grad()
    def fold_identity(self) -> None:
        """Make x part of the convolution: one more at the kernel's centre. For good."""
        if self.residual:
            self.weight[:, :, 1, 1] += 1
            self.residual = False


class FFN(nn.Module):
    """Feed-forward network with a depthwise convolution between its two Linear layers.

    Args:
        dim (int): channels.
        mlp_ratio (float): hidden channels over ``dim``.
    """

    def __init__(self, dim: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.fc1 = Linear(dim, hidden)
        self.dwconv = ResidualDWConv(hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        x = self.fc1(x)
        if x.requires_grad and not torch.compiler.is_compiling():
            # The hidden maps are most of what a training step holds. Only fc1's is kept; GELU and the depthwise
            # convolution are computed again in the backward pass, without fc2, since its result is not needed there.
            return checkpoint(self._activate_and_project, x, use_reentrant=False, preserve_rng_state=False)
        return self._activate_and_project(x)

    def _activate_and_project(self, x: Tensor) -> Tensor:
        in_place = not (x.requires_grad or torch.compiler.is_compiling())  # fc1's result is nobody else's
        x = F.gelu(x, out=x if in_place else None)
        return self.fc2(self.dwconv(x))
