"""The form for inference: what is linear after training becomes part of the convolution or projection before it."""
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_eval

from .layers import ResidualDWConv


def _fold_norm(conv: nn.Conv2d, norm: nn.Module):
    """Return the convolution with a BatchNorm's statistics in it, and an identity; or both as they are, if no such."""
    if not isinstance(norm, _BatchNorm):
        return conv, norm
    return fuse_conv_bn_eval(conv.eval(), norm.eval()), nn.Identity()


@torch.no_grad()
def fold(backbone: nn.Module) -> None:
    """Fold BatchNorms into their convolutions, identities into depthwise kernels and LayerScale into projections.

    Args:
        backbone (RMT): changed in place, and for good.
    """
    stem = backbone.stem
    for i in (0, 3, 6, 9):
        stem[i], stem[i + 1] = _fold_norm(stem[i], stem[i + 1])
    for downsample in backbone.downsamples:
        downsample.conv, downsample.norm = _fold_norm(downsample.conv, downsample.norm)
    for module in backbone.modules():
        if isinstance(module, ResidualDWConv):
            module.fold_identity()
    for block in (block for stage in backbone.stages for block in stage):
        for name, projection in (('gamma1', block.attn.proj), ('gamma2', block.ffn.fc2)):
            gamma = getattr(block, name)
            if gamma is not None:
                projection.weight.mul_(gamma.flatten()[:, None])
                projection.bias.mul_(gamma.flatten())
                setattr(block, name, None)
