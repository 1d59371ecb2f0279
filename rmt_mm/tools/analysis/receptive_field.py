"""Effective receptive fields: how strongly the centre of each output depends on each pixel of the input."""

from typing import List

import torch
from torch import Tensor, nn


def receptive_fields(backbone: nn.Module, images: Tensor) -> List[Tensor]:
    """Compute the effective receptive field of every output (Luo et al., 2016, arXiv 1701.04128).

    It is the magnitude of the gradient of the output's central token by the pixels of the input: the mean over the
    images. Channels are summed with random signs, the same at every call: a plain sum is constant after a LayerNorm,
    and its gradient vanishes.

    Args:
        backbone (nn.Module): maps (B, C, H, W) to a tuple of maps, such as :class:`rmt_mm.RMT`. It is left as it was.
        images (Tensor): (B, C, H, W), normalised as the backbone needs it.

    Returns:
        list[Tensor]: (H, W) for every output, on the CPU; each sums to 1, or is zero where the output does not depend
        on the input.
    """
    training = backbone.training
    backbone.eval()
    wanted = [parameter.requires_grad for parameter in backbone.parameters()]
    fields: List[Tensor] = []
    generator = torch.Generator().manual_seed(0)
    try:
        backbone.requires_grad_(False)  # gradients of the input alone
        for image in images:
            with torch.enable_grad():
                image = image[None].detach().clone().requires_grad_()
                outs = backbone(image)
                gradients: List[Tensor] = []
                for out in outs:
                    centre = out[0, :, out.shape[2] // 2, out.shape[3] // 2]
                    signs = (torch.randint(2, centre.shape, generator=generator) * 2 - 1).to(centre)
                    gradients += torch.autograd.grad((centre * signs).sum(), image, retain_graph=True)
            found = [gradient[0].abs().sum(0).double().cpu() for gradient in gradients]
            fields = [a + b for a, b in zip(fields, found)] if fields else found
    finally:
        backbone.train(training)
        for parameter, wants in zip(backbone.parameters(), wanted):
            parameter.requires_grad_(wants)
    return [(field / field.sum().clamp(min=1e-300)).float() for field in fields]
