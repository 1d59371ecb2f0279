"""Sizes of pictures and colours of classes, for the report, the page and the tool that draws predictions."""

import colorsys
from typing import Any, List, Tuple

import cv2
import numpy as np

# Bright colours that are told apart on photographs, for data sets of few classes that have no palette.
BRIGHT = (
    (64, 128, 255),
    (255, 150, 20),
    (30, 190, 110),
    (255, 65, 95),
    (165, 105, 255),
    (195, 125, 75),
    (255, 115, 215),
    (125, 220, 50),
    (215, 205, 0),
    (25, 205, 230),
)
Colour = Tuple[int, int, int]


def choose_colours(count: int, palette: object = None) -> List[Colour]:
    """Return a colour (R, G, B), from 0 to 255, for each of ``count`` classes.

    Args:
        count (int): number of classes.
        palette (object): of a data set or a checkpoint, which may hold anything. It is taken if it is as many colours;
            else the colours are distinct ones. Default None.
    """
    if isinstance(palette, (list, tuple)) and len(palette) == count and all(map(_is_colour, palette)):
        return [(int(r), int(g), int(b)) for r, g, b in palette]
    if count <= len(BRIGHT):
        return list(BRIGHT[:count])
    colours = []
    for i in range(count):  # steps of the golden ratio around the circle of hues
        rgb = colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.55 + 0.3 * (i % 2), 1.0 - 0.25 * (i % 3 == 2))
        colours.append((int(rgb[0] * 255), int(rgb[1] * 255), int(rgb[2] * 255)))
    return colours


def _is_colour(colour: Any) -> bool:
    return (
        isinstance(colour, (list, tuple, np.ndarray))
        and len(colour) == 3
        and all(isinstance(value, (int, float, np.number)) and 0 <= value <= 255 for value in colour)
    )


def scale_to(image: np.ndarray, side: int) -> np.ndarray:
    """Return an image (H, W) or (H, W, C) scaled so that its longer side has ``side`` pixels."""
    height, width = image.shape[:2]
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA)
