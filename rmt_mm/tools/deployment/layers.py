"""Layers of the libraries in forms whose recorded program serves any size."""

import torch
from torch import Tensor, nn


class AveragePool(nn.Module):
    """The average of each cell of a grid, as ``nn.AdaptiveAvgPool2d``: (B, C, H, W) to (B, C, size, size).

    ONNX has no operator for it. The average is a product with a matrix that is computed from the map's size.

    Args:
        size (int): rows and columns of the grid.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self._weights(side, x) for side in x.shape[2:])
        return rows @ x @ columns.transpose(0, 1)

    def _weights(self, side: int, x: Tensor) -> Tensor:
        """Return (size, side): the share of each of ``side`` pixels in each cell."""
        cell = torch.arange(self.size, device=x.device)[:, None] * side
        pixel = torch.arange(side, device=x.device)[None] * self.size
        # Cell i has the pixels from floor(i * side / size) up to, not including, ceil((i + 1) * side / size).
        inside = ((pixel + self.size > cell) & (pixel < cell + side)).to(x.dtype)
        return inside / inside.sum(1, keepdim=True)


def replace_layers(model: nn.Module) -> None:
    """Replace, in place, layers that fix sizes to those of the first image that a recorder sees."""
    from mmseg.models.utils.wrappers import Upsample

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.AdaptiveAvgPool2d):
                size = child.output_size
                if isinstance(size, tuple) and size[0] == size[1]:
                    size = size[0]
                if isinstance(size, int):
                    setattr(module, name, AveragePool(size))
            elif isinstance(child, Upsample) and not child.size:
                new = nn.Upsample(scale_factor=child.scale_factor, mode=child.mode, align_corners=child.align_corners)
                setattr(module, name, new)
