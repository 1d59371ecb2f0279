"""MixToken: replace a box of each sample's feature map by that of its counterpart in the flipped batch."""

from typing import Optional, Sequence, Tuple, Union

import numpy as np
import torch
from mmpretrain.models.utils.batch_augments import CutMix
from torch import Tensor

Box = Tuple[int, int, int, int]  # y1, y2, x1, x2, the ends excluded


@torch.compiler.disable  # a compiled graph cannot draw NumPy's random numbers
def draw_box(height: int, width: int, alpha: float = 1.0) -> Optional[Box]:
    """Draw a box on a map of height x width whose share of the area is about 1 - lam, with lam ~ Beta(alpha, alpha).

    Returns:
        tuple[int] | None: (y1, y2, x1, x2), the ends excluded, or None for an empty one.
    """
    lam = np.random.beta(alpha, alpha)
    y1, y2, x1, x2 = (int(edge) for edge in CutMix(alpha=float(alpha)).rand_bbox((height, width), lam))
    return (y1, y2, x1, x2) if y2 > y1 and x2 > x1 else None


def box_mask(box: Box, height: int, width: int, device: torch.device) -> Tensor:
    """Return a mask (H, W), True inside the box. A compiled model takes the mask as input: one graph for all boxes."""
    y1, y2, x1, x2 = box
    mask = torch.zeros(height, width, dtype=torch.bool, device=device)
    mask[y1:y2, x1:x2] = True
    return mask


def paste_flipped(x: Tensor, box: Union[Box, Tensor]) -> Tensor:
    """Replace a box of every sample by the same box of the flipped batch. Applied twice, it changes nothing.

    Args:
        x (Tensor): (B, C, H, W).
        box (tuple[int] | Tensor): (y1, y2, x1, x2), the ends excluded, or a mask from :func:`box_mask`.

    Returns:
        Tensor: (B, C, H, W), a copy.
    """
    height, width = x.shape[2:]
    inside = box if isinstance(box, Tensor) else box_mask(box, height, width, x.device)
    return torch.where(inside, x.flip(0), x)


def kept_fraction(box: Box, size: Sequence[int]) -> float:
    """Return lam, the share of a map of ``size`` (H, W) outside a box."""
    y1, y2, x1, x2 = box
    return 1 - (y2 - y1) * (x2 - x1) / (size[0] * size[1])
