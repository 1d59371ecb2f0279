"""Large images by tiles: where the tiles lie, and how detections in them become those of the image."""

from typing import Iterator, List, Optional, Sequence, Tuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from ..report.scenes import font


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


class TileMask:
    """A mask of a tile, in a few bytes for each of its columns: the rectangle that holds it, as COCO's RLE.

    Args:
        mask (np.ndarray): (h, w), bool, contiguous.
        left, top (int): where the tile lies in the image.

    Attributes:
        window (tuple[slice, slice]): rows and columns of the rectangle in the image.
    """

    def __init__(self, mask: np.ndarray, left: int, top: int) -> None:
        from pycocotools.mask import encode  # mmdet requires it, this package does not

        x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
        self._rle = encode(np.asfortranarray(mask[y : y + h, x : x + w], np.uint8))
        self.window = slice(top + y, top + y + h), slice(left + x, left + x + w)

    def decode(self) -> np.ndarray:
        """Return the pixels of the rectangle, uint8, 0 or 1."""
        from pycocotools.mask import decode

        return np.ascontiguousarray(decode(self._rle))

    def encode(self, height: int, width: int) -> dict:
        """Return COCO's RLE of the whole image."""
        from pycocotools.mask import frPyObjects

        rows, columns = self.window
        # RLE counts pixels down the columns: a column's runs begin and end where neighbours in it differ.
        x, y = np.nonzero(np.diff(np.pad(self.decode(), ((1, 1), (0, 0))), axis=0).T)
        bounds = (columns.start + x) * height + rows.start + y
        runs = np.diff(bounds, prepend=0, append=height * width)
        return frPyObjects(dict(counts=runs.tolist(), size=[height, width]), height, width)


def draw_objects(
    image: np.ndarray,
    boxes: np.ndarray,
    names: Sequence[str],
    colours: Sequence[Tuple[int, int, int]],
    masks: Optional[Sequence[TileMask]] = None,
) -> np.ndarray:
    """Return an image with detections on it, in memory of twice the image: mmdet's visualiser needs 50 times as much.

    Args:
        image (np.ndarray): (H, W, 3), RGB, uint8.
        boxes (np.ndarray): (N, 4), left, top, right, bottom.
        names (Sequence[str]): written at the boxes.
        colours (Sequence[tuple]): of the boxes and masks.
        masks (Sequence[TileMask], optional): of the objects.
    """
    image = image.copy()
    for mask, colour in zip(masks or (), colours):
        inside, part = mask.decode(), image[mask.window]
        if inside.size:
            painted = cv2.addWeighted(part, 0.5, np.full_like(part, colour), 0.5, 0)
            part[inside > 0] = painted[inside > 0]
            outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(image, outlines, -1, (255, 255, 255), offset=(mask.window[1].start, mask.window[0].start))
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    for box, name, colour in zip(boxes.tolist(), names, colours):
        draw.rectangle(box, outline=colour, width=3)
        place = max(box[0], 0) + 3, max(box[1], 0) + 3
        draw.rectangle(draw.textbbox(place, name, font(13)), fill='black')
        draw.text(place, name, 'white', font(13))
    return np.array(picture)
