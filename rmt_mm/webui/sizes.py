"""Sizes at which pictures are shown: large ones reduced, small ones enlarged before boxes and names are drawn."""

from typing import Any, Tuple

import cv2
import numpy as np
import torch
from mmengine.structures import PixelData

# Pictures are sent to the browser with a longer side of at most this many pixels.
LARGEST = 1600
# Smaller ones are enlarged to about this many pixels: the visualisers' lines and letters would cover them.
SMALLEST = 640


def shrink(image: np.ndarray) -> np.ndarray:
    """Return an image with a longer side of at most ``LARGEST`` pixels."""
    height, width = image.shape[:2]
    ratio = LARGEST / max(height, width)
    if ratio >= 1:
        return image
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def enlarge(image: np.ndarray, sample: Any) -> Tuple[np.ndarray, Any]:
    """Return a small image, and the boxes, masks and labels of its data sample, enlarged by a whole number.

    Args:
        image (np.ndarray): (H, W, 3), uint8.
        sample: a data sample of mmdet or mmseg. It stays as it is.
    """
    height, width = image.shape[:2]
    times = SMALLEST // max(height, width)
    if times < 2:
        return image, sample
    image = cv2.resize(image, (width * times, height * times), interpolation=cv2.INTER_CUBIC)
    sample = sample.clone()
    if 'pred_sem_seg' in sample:
        labels = sample.pred_sem_seg.data.repeat_interleave(times, -2).repeat_interleave(times, -1)
        del sample.pred_sem_seg
        sample.pred_sem_seg = PixelData(data=labels)
    if 'pred_instances' in sample:
        found = sample.pred_instances
        found.bboxes = found.bboxes * times
        if 'masks' in found:
            masks = torch.as_tensor(found.masks, dtype=torch.bool)
            found.masks = masks.repeat_interleave(times, -2).repeat_interleave(times, -1)
    return image, sample
