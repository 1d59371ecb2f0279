"""The layers around attention: Linear layers of maps, stem, downsampling, depthwise convolution and FFN."""

from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

from .eager import (
    is_compiling,
    is_exporting,
    is_plain,
    is_recorded,
    is_traced,
    may_call_opaque,
    may_overwrite,
    opaque_to_compilers,
)

# Without gradients, the CPU computes hidden maps of the FFN above MAX_HIDDEN_BYTES in strips of about STRIP_BYTES,
# which stay in its cache. With fewer rows than MIN_STRIP_ROWS, the rows that two strips share would cost too much.
MAX_HIDDEN_BYTES = 2**24
STRIP_BYTES = 2**22
MIN_STRIP_ROWS = 8


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
    if convolution_is_faster(x) and is_plain(layer, nn.Linear) and not is_traced():
        return linear_by_convolution(x, layer.weight, layer.bias)
    return layer(x)


def convolution_is_faster(x: Tensor) -> bool:
    """Tell whether a 1x1 convolution of a map is faster than the matrix product that equals it."""
    return x.device.type == 'cpu' and x.dtype == torch.float32 and bool(torch.backends.mkldnn.enabled)


def linear_by_convolution(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    """Compute ``F.linear`` of a map (B, H, W, C) as a 1x1 convolution."""
    return F.conv2d(to_image(x), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


def conv_norm(in_channels: int, out_channels: int, stride: int, norm_cfg: dict) -> Tuple[nn.Conv2d, nn.Module]:
    """Return a 3x3 convolution with bias and the norm that follows it."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1), build_norm_layer(norm_cfg, out_channels)[1]


def fold_norm(conv: nn.Conv2d, norm: nn.Module) -> Tuple[nn.Conv2d, nn.Module]:
    """Fuse BatchNorm into the convolution before it; return the convolution and an identity.

    Other norms have no fixed statistics and are returned unchanged.
    """
    if not isinstance(norm, _BatchNorm):
        return conv, norm
    return fuse_conv_bn_eval(conv.eval(), norm.eval()), nn.Identity()


class ConvStem(nn.Sequential):
    """Four 3x3 convolutions of strides 2, 1, 2, 1, from (B, in_channels, H, W) to (B, dim, H/4, W/4).

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


@opaque_to_compilers
def ffn_in_strips(
    x: Tensor,
    weight1: Tensor,
    bias1: Optional[Tensor],
    depthwise_weight: Tensor,
    depthwise_bias: Optional[Tensor],
    weight2: Tensor,
    bias2: Optional[Tensor],
    residual: bool,
    rows: int,
) -> Tensor:
    """Compute the forward pass of :class:`FFN` in strips of rows of an image, or of as many whole images as make them.

    The depthwise convolution needs one more row on either side, so two strips compute the rows at their border.

    Args:
        x (Tensor): (B, H, W, C).
        weight1, bias1, depthwise_weight, depthwise_bias, weight2, bias2 (Tensor): the parameters of the FFN's layers.
        residual (bool): the depthwise convolution adds its input.
        rows (int): rows of a strip.

    Returns:
        Tensor: (B, H, W, C).
    """
    out: Optional[Tensor] = None
    height = x.shape[1]
    images = max(1, rows // height)
    for first in range(0, len(x), images):
        part = slice(first, first + images)
        for top in range(0, height, rows):
            start, end = max(0, top - 1), min(height, top + rows + 1)
            hidden = linear_by_convolution(x[part, start:end], weight1, bias1)
            hidden = to_image(F.gelu(hidden, out=hidden))  # type: ignore[call-arg]  # torch's stub lacks `out`
            mixed = F.conv2d(hidden, depthwise_weight, depthwise_bias, padding=1, groups=len(depthwise_weight))
            mixed = (mixed.add_(hidden) if residual else mixed).permute(0, 2, 3, 1)
            strip = linear_by_convolution(mixed[:, top - start : top - start + rows], weight2, bias2)
            if out is None:  # autocast decides its dtype
                out = strip.new_empty(x.shape)
            out[part, top : top + rows] = strip
    assert out is not None
    return out


class FFN(nn.Module):
    """Feed-forward network with a depthwise convolution between its two Linear layers.

    Args:
        dim (int): channels.
        mlp_ratio (float): hidden channels over ``dim``.
        with_cp (bool): in the backward pass, compute GELU and the depthwise convolution again. Default True.
    """

    _KINDS = dict(fc1=nn.Linear, dwconv=ResidualDWConv, fc2=nn.Linear)

    def __init__(self, dim: int, mlp_ratio: float, with_cp: bool = True) -> None:
        super().__init__()
        self.with_cp = with_cp
        hidden = int(dim * mlp_ratio)
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = ResidualDWConv(hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        if convolution_is_faster(x) and may_call_opaque() and self._are_plain(*self._KINDS):
            row_bytes = x.shape[2] * self.fc1.out_features * x.element_size()
            if x.shape[0] * x.shape[1] * row_bytes > MAX_HIDDEN_BYTES:
                parameters = [p for layer in (self.fc1, self.dwconv, self.fc2) for p in (layer.weight, layer.bias)]
                rows = max(MIN_STRIP_ROWS, STRIP_BYTES // row_bytes)
                return ffn_in_strips(x, *parameters, self.dwconv.residual, rows)
        x = channels_last_linear(self.fc1, x)
        # The hidden maps take most of a training step's memory. Keep only fc1's output; the backward pass computes GELU
        # and the depthwise convolution again, but not fc2, whose result it does not need. Hooks would run in the second
        # computation too: with hooks, keep everything.
        if self.with_cp and x.requires_grad and not is_recorded() and self._are_plain('dwconv', 'fc2'):
            return checkpoint(self._activate_and_project, x, use_reentrant=False, preserve_rng_state=False)
        return self._activate_and_project(x)

    def _activate_and_project(self, x: Tensor) -> Tensor:
        in_place = not x.requires_grad and may_overwrite(self.fc1, nn.Linear)
        x = F.gelu(x, out=x if in_place else None)  # type: ignore[call-arg]  # torch's stub lacks `out`
        return channels_last_linear(self.fc2, self.dwconv(x))

    def _are_plain(self, *names: str) -> bool:
        return all(is_plain(getattr(self, name), self._KINDS[name]) for name in names)
