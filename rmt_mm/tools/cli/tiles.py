"""Large images by tiles: where the tiles lie, and how detections in them become those of the image."""

from typing import Iterator, List, Tuple

import numpy as np


def tile_windows(height: int, width: int, size: int, overlap: int) -> Iterator[Tuple[slice, slice]]:
    """Yield rows and columns of square tiles that cover an image.

    Args:
        height, width (int): of the image.
        size (int): side of a tile, in pixels. The image itself is one tile along a shorter side.
        overlap (int): least number of pixels that neighbours share. The last tile is moved back to the border.
    """

    def starts(length: int) -> List[int]:
        last = max(0, length - size)
        return [*range(0, last, size - overlap), last]

    for top in starts(height):
        for left in starts(width):
            yield slice(top, top + size), slice(left, left + size)


def merge_boxes(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, threshold: float = 0.5) -> List[int]:
    """Choose one of the boxes that show the same object, for boxes of overlapping tiles.

    Non-maximum suppression by intersection over the *smaller* area: a tile's border cuts objects, and the box of a part
    has little in common with that of the whole by intersection over union.

    Args:
        boxes (np.ndarray): (N, 4), left, top, right, bottom.
        scores (np.ndarray): (N, ), from 0 to 1. In the same fifth of this range, the larger of two boxes is kept.
        labels (np.ndarray): (N, ). Boxes of different classes do not suppress each other.
        threshold (float): intersection over the smaller area from which two boxes show the same object. Default 0.5.

    Returns:
        list[int]: the indices to keep, by falling score.
    """
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1)
    # The score of a part is often as high as that of the whole object: within a fifth, order by area.
    order = np.lexsort((-areas, -np.floor(scores / 0.2)))
    kept: List[int] = []
    for i in order:
        same = [j for j in kept if labels[j] == labels[i]]
        if same:
            low, high = np.maximum(boxes[same, :2], boxes[i, :2]), np.minimum(boxes[same, 2:], boxes[i, 2:])
            shared = (high - low).clip(min=0).prod(axis=1)
            if (shared > threshold * np.minimum(areas[same], areas[i])).any():
                continue
        kept.append(int(i))
    return sorted(kept, key=lambda i: -scores[i])
