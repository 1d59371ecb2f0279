"""Fold RMT into its form for inference: the same outputs up to rounding, fewer layers and fewer parameters."""

from typing import Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_eval

from .block import RMTBlock
from .layers import ResidualDWConv
from .stem import ConvStem, Downsample


@torch.no_grad()
def fold(model: nn.Module) -> None:
    """Fuse BatchNorm into the convolution before it, additions into depthwise kernels, LayerScale into projections."""
    for module in list(model.modules()):
        if isinstance(module, ConvStem):
            for i, layer in enumerate(module):
                if isinstance(layer, nn.Conv2d):
                    module[i], module[i + 1] = fold_norm(layer, module[i + 1])
        elif isinstance(module, Downsample):
            module.conv, module.norm = fold_norm(module.conv, module.norm)
        elif isinstance(module, ResidualDWConv) and module.residual:
            module.weight[:, :, 1, 1] += 1
            module.residual = False
        elif isinstance(module, RMTBlock):
            fold_scale(module.gamma1, module.attn.proj)
            fold_scale(module.gamma2, module.ffn.fc2)
            module.gamma1 = module.gamma2 = None


def fold_norm(conv: nn.Conv2d, norm: nn.Module) -> Tuple[nn.Conv2d, nn.Module]:
    """Fuse BatchNorm into the convolution before it; return the convolution and an identity.

    Norms of other kinds, and a BatchNorm that computes the statistics of its input, are returned unchanged.
    """
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
        return conv, norm
    return fuse_conv_bn_eval(conv.eval(), norm.eval()), nn.Identity()


def fold_scale(gamma: Optional[Tensor], projection: nn.Linear) -> None:
    """Fuse LayerScale, if there is one, into the Linear layer before it."""
    if gamma is not None:
        projection.weight.mul_(gamma.flatten()[:, None])
        projection.bias.mul_(gamma.flatten())
