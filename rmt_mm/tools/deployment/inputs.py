"""What an exported model takes: RGB images or those of other channels, normalised by the application or the graph."""

from typing import Any, NamedTuple, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UsageError


class ImageNorm(NamedTuple):
    """What a data preprocessor of mmdet, mmseg or mmpretrain does to the pixels of an image."""

    mean: Tuple[float, ...] = (0.0, 0.0, 0.0)  # of R, G, B, or of each channel, from 0 to 255
    std: Tuple[float, ...] = (1.0, 1.0, 1.0)
    is_bgr: bool = False  # the model takes three channels as B, G, R
    divisor: int = 1  # of height and width, after padding at the bottom and on the right
    pad_value: float = 0.0  # of padded pixels, after normalisation


def read_preprocessor(preprocessor: Any, channels: int = 3) -> ImageNorm:
    """Return what a data preprocessor of the libraries does to one image at test time.

    Args:
        preprocessor: a model's ``data_preprocessor``.
        channels (int): of an image. Only three are turned between RGB and BGR. Default 3.

    Raises:
        UsageError: it pads images to a fixed size.
    """
    # The libraries read images as B, G, R. Each has its own name for the setting that turns them.
    is_rgb = any(getattr(preprocessor, name, False) for name in ('to_rgb', 'channel_conversion', '_channel_conversion'))
    mean, std = (0.0,) * channels, (1.0,) * channels
    if getattr(preprocessor, '_enable_normalize', False):
        mean, std = (tuple(t.flatten().tolist()) for t in (preprocessor.mean, preprocessor.std))
        # The libraries apply a single value to all channels.
        mean, std = (values * channels if len(values) == 1 else values for values in (mean, std))
    divisor, value = getattr(preprocessor, 'pad_size_divisor', 1), getattr(preprocessor, 'pad_value', 0)
    if hasattr(preprocessor, 'size_divisor'):  # mmseg's own, of training; test_cfg says what it does to test images
        test_cfg = preprocessor.test_cfg or {}
        if test_cfg.get('size'):
            raise UsageError(
                'the config pads test images to a fixed size (data_preprocessor.test_cfg.size): remove it.'
            )
        divisor, value = test_cfg.get('size_divisor') or 1, preprocessor.pad_val
    is_bgr = channels == 3 and not is_rgb
    if is_bgr:
        mean, std = mean[::-1], std[::-1]
    return ImageNorm(mean, std, is_bgr, divisor, float(value))


class Preparation(nn.Module):
    """The first steps of a graph: normalise, order the channels, and pad.

    Args:
        norm (ImageNorm): what the model's data preprocessor does.
        normalize (bool): take uint8 RGB images (B, H, W, C), and normalise them in the graph. Otherwise take normalised
            RGB images (B, C, H, W), fp32.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, norm: ImageNorm, normalize: bool) -> None:
        super().__init__()
        self.norm, self.normalize = norm, normalize
        for name in ('mean', 'std'):
            self.register_buffer(name, torch.tensor(getattr(norm, name), dtype=torch.float32).view(1, -1, 1, 1), False)

    def forward(self, image: Tensor) -> Tensor:
        """Return what the model takes, (B, C, H', W'), fp32."""
        if self.normalize:
            image = (image.permute(0, 3, 1, 2).float() - self.mean) / self.std
        if self.norm.is_bgr:
            image = image.flip(1)
        divisor = self.norm.divisor
        if divisor > 1:
            height, width = image.shape[2:]
            image = F.pad(image, (0, -width % divisor, 0, -height % divisor), value=self.norm.pad_value)
        return image

    def size(self, image: Tensor) -> Tuple[Any, Any]:
        """Return height and width of an image that the graph takes, before it is padded."""
        height, width = image.shape[1:3] if self.normalize else image.shape[2:]
        return height, width

    def example(self, batch: int, height: int, width: int) -> Tensor:
        """Return random images that the graph takes, the same in every call."""
        generator = torch.Generator().manual_seed(0)
        # Blocks of one colour, not noise: a photograph is smooth.
        small = torch.randint(
            0, 256, (batch, len(self.norm.mean), -(-height // 16), -(-width // 16)), generator=generator
        ).float()
        image = F.interpolate(small, (height, width), mode='bilinear').round()
        if self.normalize:
            return image.permute(0, 2, 3, 1).to(torch.uint8)
        return (image - self.mean.float()) / self.std.float()
