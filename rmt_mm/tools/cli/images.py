"""Find and read images of any kind: files, folders, glob patterns; gray, 16-bit, with transparency, rotated, CMYK."""

import glob
import os.path as osp
from pathlib import Path
from typing import List

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ...errors import UsageError
from ...training.image_size import PILLOW_ERRORS, explain

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm', '.gif')
VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v')


def find_images(source: str) -> List[Path]:
    """Return the images that a file, a folder (not the folders in it) or a glob pattern names, in order of names.

    Raises:
        UsageError: there is none.
    """
    path = Path(osp.expanduser(source))
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise UsageError(f'{source}: there is no image in this folder ({", ".join(IMAGE_SUFFIXES)}).')
        return found
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if osp.isfile(name))
    if not found:
        raise UsageError(f'{source}: there is no such file, folder or pattern of files.')
    return found


def read_image(path: Path) -> np.ndarray:
    """Read an image as a viewer shows it: upright by its EXIF tag, on white where it is transparent.

    Args:
        path (Path): a file that Pillow or OpenCV reads. Of several frames, the first is read.

    Returns:
        np.ndarray: (H, W, 3), RGB, uint8. 16 bits a channel are scaled to 8.

    Raises:
        UsageError: the file is no image, is damaged, or is larger than OpenCV reads.
    """
    try:
        with Image.open(path) as image:
            image.load()
            upright = _turn(image)
    except (*PILLOW_ERRORS, Image.DecompressionBombError) as error:
        # OpenCV also reads large images, and formats that Pillow does not know; of a file cut off, it fills the rest.
        is_cut_off = isinstance(error, OSError) and not isinstance(error, UnidentifiedImageError)
        read = None if is_cut_off else cv2.imread(str(path))
        if read is None:
            reason = explain(error, str(path), 'cv2') if isinstance(error, Image.DecompressionBombError) else error
            raise UsageError(f'{path} cannot be read as an image: {reason}') from error
        return np.ascontiguousarray(read[..., ::-1])
    if upright.mode.startswith(('I', 'F')):
        values = np.asarray(upright, dtype=np.float64)
        top = values.max()
        if upright.mode.startswith('I;16') or 255 < top <= 65535:  # some versions of Pillow read 16 bits as 32
            top = 65535
        elif top <= 255:
            top = 255
        gray = np.clip(values / top * 255, 0, 255).round().astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if 'A' in upright.getbands() or 'transparency' in upright.info:
        layers = upright.convert('RGBA')
        upright = Image.alpha_composite(Image.new('RGBA', layers.size, 'white'), layers)
    return np.array(upright.convert('RGB'))


def _turn(image: Image.Image) -> Image.Image:
    """Return an image upright; as it is stored if its EXIF data are malformed, as OpenCV does."""
    try:
        return ImageOps.exif_transpose(image)
    except (*PILLOW_ERRORS, TypeError, LookupError):
        return image.copy()
