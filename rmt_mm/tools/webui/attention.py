"""Decay, softmax and attention of the token that a user clicked, as heat over the picture."""

from typing import List, NamedTuple, Optional, Tuple

import cv2
import matplotlib
import numpy as np
import torch

from ..analysis import AttentionMaps, Recorded, View, attention_maps
from ..pictures import scale_to
from .sizes import PANEL

HEAT = (matplotlib.colormaps['inferno'](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)


class Panels(NamedTuple):
    """What the page shows of one token.

    Attributes:
        images (list[np.ndarray]): decay, softmax of the scores alone, attention: heat over the picture, RGB, uint8.
        largest (list[float]): the largest value of each map, which has the brightest colour.
        text (str): which token this is.
    """

    images: List[np.ndarray]
    largest: List[float]
    text: str


def draw_panels(
    image: np.ndarray, view: View, recorded: Recorded, pixel: Tuple[float, float], stride: int, head: Optional[int]
) -> Panels:
    """Draw the maps of the token at a pixel.

    Args:
        image (np.ndarray): (H, W, 3), RGB, uint8.
        view (View): where the model's input lies in the image.
        recorded (Recorded): input of the MaSA.
        pixel (tuple[float, float]): x and y, in the image.
        stride (int): of the MaSA's stage.
        head (int, optional): Default: the mean of the heads.

    Raises:
        ValueError: the pixel lies in a border that the test pipeline cuts off.
    """
    query = view.token(*pixel, stride)
    maps = choose_head(attention_maps(recorded.masa, recorded.x, query), head)
    height, width = image.shape[:2]
    image = scale_to(image, PANEL)
    shown = zoom(view, *image.shape[:2])
    heats = shown.on_image(maps, stride).numpy()
    corners = [shown.pixel(query[0] + d, query[1] + d, stride) for d in (-0.5, 0.5)]
    images = [mark(lay_over(image, heat), corners) for heat in heats]
    rows, columns = recorded.x.shape[:2]
    text = (
        f'Pixel ({pixel[0]:.0f}, {pixel[1]:.0f}) of {width} x {height} lies in the token of row {query[0]}, column '
        f'{query[1]}; the stage has {rows} x {columns} tokens, '
        f'and attends {"along rows, then columns" if recorded.masa.decomposed else "over the whole map"}.'
    )
    return Panels(images, [float(m.max()) for m in maps], text)


def choose_head(maps: AttentionMaps, head: Optional[int]) -> torch.Tensor:
    """Return decay, softmax and attention of one head, or the mean of all: (3, H, W)."""
    return torch.stack([m.mean(0) if head is None else m[head] for m in maps])


def zoom(view: View, height: int, width: int) -> View:
    """Return the view of the same image in another size."""
    return view._replace(
        height=height,
        width=width,
        scale_y=view.scale_y * view.height / height,
        scale_x=view.scale_x * view.width / width,
    )


def lay_over(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return a gray image with heat over it, from 0 to the heat's largest value. NaN stays gray."""
    share = np.nan_to_num(heat / max(float(np.nanmax(heat)), 1e-30))[..., None]
    gray = np.repeat(image.mean(2, keepdims=True), 3, axis=2)
    opacity = np.where(np.isnan(heat)[..., None], 0, 0.4 + 0.45 * share)
    colours = HEAT[(share[..., 0] * 255).round().astype(int)]
    return (gray * (1 - opacity) + colours * opacity).round().astype(np.uint8)


def mark(image: np.ndarray, corners: List[Tuple[float, float]]) -> np.ndarray:
    """Outline a token, at least 6 pixels wide, in white on black."""
    (left, top), (right, bottom) = corners
    grow = max(0.0, 3 - (right - left) / 2)
    first, last = (round(left - grow), round(top - grow)), (round(right + grow), round(bottom + grow))
    image = np.ascontiguousarray(image)
    for colour, thickness in (((0, 0, 0), 4), ((255, 255, 255), 2)):
        cv2.rectangle(image, first, last, colour, thickness, cv2.LINE_AA)
    return image
