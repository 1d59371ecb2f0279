"""Scale pictures to a size, for the report and the page."""

import cv2
import numpy as np


def scale_to(image: np.ndarray, side: int) -> np.ndarray:
    """Return an image (H, W) or (H, W, C) scaled so that its longer side has ``side`` pixels."""
    height, width = image.shape[:2]
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA)
