"""Sizes at which pictures are shown: large ones reduced, small ones enlarged before boxes and names are drawn."""

from typing import Any, Tuple

import numpy as np
import torch
from mmengine.structures import PixelData

from ..pictures import scale_to

# Pictures are sent to the browser with a longer side of at most this many pixels.
LARGEST = 1600
# The picture to click into has at least this many, more than the page gives it: gradio computes wrong coordinates of
# clicks into enlarged pictures.
CLICKABLE = 960
# Pictures to draw on are enlarged to at most this many: the visualisers' lines and letters would cover smaller ones.
SMALLEST = 400
# The longer side of the attention's panels.
PANEL = 480


def shrink(image: np.ndarray) -> np.ndarray:
    """Return an image with a longer side of at most ``LARGEST`` pixels."""
    return image if max(image.shape[:2]) <= LARGEST else scale_to(image, LARGEST)


def clickable(image: np.ndarray) -> np.ndarray:
    """Return an image with a longer side of ``CLICKABLE`` to ``LARGEST`` pixels."""
    return scale_to(image, min(max(*image.shape[:2], CLICKABLE), LARGEST))


def enlarge_with_sample(image: np.ndarray, sample: Any) -> Tuple[np.ndarray, Any]:
    """Return a small image, and the boxes, masks and labels of its data sample, enlarged by a whole number.

    Args:
        image (np.ndarray): (H, W, 3), uint8.
        sample: a data sample of mmdet or mmseg. It stays as it is.
    """
    side = max(image.shape[:2])
    times = SMALLEST // side
    if times < 2:
        return image, sample

    def repeat(values: Any) -> torch.Tensor:
        return torch.as_tensor(values).repeat_interleave(times, -2).repeat_interleave(times, -1)

    larger = sample.clone()  # which shares its parts with the sample
    if 'pred_sem_seg' in sample:
        del larger.pred_sem_seg  # a PixelData keeps its size
        larger.pred_sem_seg = PixelData(data=repeat(sample.pred_sem_seg.data))
    if 'pred_instances' in sample:
        found = sample.pred_instances.clone()
        found.bboxes = found.bboxes * times
        if 'masks' in found:
            found.masks = repeat(found.masks)
        larger.pred_instances = found
    return scale_to(image, times * side), larger
