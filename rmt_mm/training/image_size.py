"""The size of an image as the transform of a pipeline loads it: by its backend, and turned by EXIF or not."""

import struct
import warnings
from typing import Optional, Tuple

import cv2
import mmcv
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from ..errors import FOREIGN_ERRORS, DataError, in_one_line

# What Pillow raises for a damaged file, and what a transform that reads by Pillow or OpenCV may raise.
PILLOW_ERRORS = (OSError, SyntaxError, ValueError, struct.error)
DECODE_ERRORS = (*FOREIGN_ERRORS, cv2.error, struct.error, Image.DecompressionBombError)


def read_image_size(load, path: str) -> Optional[Tuple[int, int]]:
    """Load an image, and return its width and height.

    Args:
        load: the transform that loads images; None is returned for other readers than mmcv's ``LoadImageFromFile``.
        path (str): a file on this machine.

    Raises:
        DataError: the transform cannot read the file; the text is the reason.
    """
    if getattr(type(load), 'transform', None) is not LoadImageFromFile.transform:
        return None
    try:
        loaded = load.transform(dict(img_path=path))
    except DECODE_ERRORS as error:
        raise DataError(explain(error, path, load.imdecode_backend)) from error
    return None if loaded is None else loaded['img'].shape[1::-1]


def is_turned(path: str, width: int, height: int) -> bool:
    """Tell whether an image has this width and height as it is stored, before EXIF's orientation is applied."""
    image = mmcv.imread(path, flag='color_ignore_orientation', backend='cv2')
    return image is not None and image.shape[1::-1] == (width, height)


def explain(error: BaseException, path: str, backend: Optional[str]) -> str:
    """Return why a backend of mmcv cannot read an image, and what to set where its limit of pixels is the reason."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    backend = backend or mmcv.image.io.imread_backend
    limits = dict(
        cv2='OpenCV reads up to 2**30 pixels, or as many as the environment variable OPENCV_IO_MAX_IMAGE_PIXELS says',
        pillow=f"Pillow reads up to {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels: set imdecode_backend='cv2' for more",
    )
    if backend in limits and exceeds_limit_of_pillow(path):
        return limits[backend]
    if isinstance(error, AssertionError):  # mmcv's, for what OpenCV returns
        return f'it is damaged, or no image that {backend} reads'
    return in_one_line(error)


def exceeds_limit_of_pillow(path: str) -> bool:
    """Tell from its header whether an image has more pixels than Pillow reads."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            Image.open(path).close()
    except Image.DecompressionBombError:
        return True
    except PILLOW_ERRORS:
        pass
    return False
