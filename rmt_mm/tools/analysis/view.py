"""Where a model's input and its tokens lie in the image that a user sees."""

from typing import Any, Mapping, NamedTuple, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor


class View(NamedTuple):
    """The part of an image that a model sees: the image, scaled, then cut to a window. Sizes are in pixels."""

    height: int  # of the image
    width: int
    scale_y: float  # pixels of the model's input per pixel of the image
    scale_x: float
    top: int  # of the window in the scaled image
    left: int
    window_height: int  # without padding
    window_width: int

    @classmethod
    def from_metainfo(cls, metainfo: Mapping[str, Any]) -> 'View':
        """Read the view from the ``metainfo`` of a library's data sample.

        Args:
            metainfo (Mapping): with ori_shape, img_shape and, where it was not the identity, scale_factor. A window
                smaller than the scaled image was cut from its centre, as the libraries' test pipelines do.
        """
        height, width = metainfo['ori_shape'][:2]
        window_height, window_width = metainfo['img_shape'][:2]
        scale_x, scale_y = metainfo.get('scale_factor', (1.0, 1.0))[:2]
        top, left = (
            max(0, round((length * scale - window) / 2)) if length * scale >= window + 1 else 0
            for length, scale, window in ((height, scale_y, window_height), (width, scale_x, window_width))
        )
        return cls(height, width, float(scale_y), float(scale_x), top, left, window_height, window_width)

    def token(self, x: float, y: float, stride: int) -> Tuple[int, int]:
        """Return row and column of the token that holds a pixel of the image.

        Raises:
            ValueError: the pixel lies outside the image, or outside the window that the model sees.
        """
        if not (0 <= x < self.width and 0 <= y < self.height):
            raise ValueError(f'pixel ({x}, {y}) lies outside the image of {self.width} x {self.height} pixels.')
        row, column = (y + 0.5) * self.scale_y - self.top, (x + 0.5) * self.scale_x - self.left
        if not (0 <= row <= self.window_height and 0 <= column <= self.window_width):
            raise ValueError(f'pixel ({x}, {y}) lies in the border that the test pipeline cuts off.')
        return (
            int(min(row, self.window_height - 1)) // stride,
            int(min(column, self.window_width - 1)) // stride,
        )

    def pixel(self, row: float, column: float, stride: int) -> Tuple[float, float]:
        """Return x and y, in the image, of the centre of a token."""
        y = ((row + 0.5) * stride + self.top) / self.scale_y - 0.5
        x = ((column + 0.5) * stride + self.left) / self.scale_x - 0.5
        return x, y

    def on_image(self, maps: Tensor, stride: int, mode: str = 'bilinear') -> Tensor:
        """Lay maps of tokens over the image.

        Args:
            maps (Tensor): (N, rows, columns), of tokens of ``stride`` pixels of the model's input.
            stride (int): 1 for maps of the input's pixels.
            mode (str): ``'bilinear'`` or ``'nearest'``. Default ``'bilinear'``.

        Returns:
            Tensor: (N, height, width), NaN where the model does not see the image.
        """
        y = (torch.arange(self.height, dtype=torch.float64) + 0.5) * self.scale_y - self.top
        x = (torch.arange(self.width, dtype=torch.float64) + 0.5) * self.scale_x - self.left
        rows, columns = maps.shape[1:]
        maps = maps.float().cpu()
        if mode == 'nearest':
            row, column = ((t / stride).long().clamp(0, n - 1) for t, n in ((y, rows), (x, columns)))
            out = maps[:, row][:, :, column]
        else:  # grid_sample's coordinates run from -1, the outer edge of the first token, to 1
            axes = torch.meshgrid(y / (stride * rows), x / (stride * columns), indexing='ij')
            grid = 2 * torch.stack(axes[::-1], dim=-1)[None].float() - 1
            out = F.grid_sample(maps[None], grid, mode=mode, padding_mode='border', align_corners=False)[0]
        seen_y, seen_x = (y >= 0) & (y <= self.window_height), (x >= 0) & (x <= self.window_width)
        return out.masked_fill(~(seen_y[:, None] & seen_x), float('nan'))
