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


def known_formats() -> List[str]:
    """Return the formats that Pillow reads, without PostScript, for which it starts another program."""
    Image.init()
    return sorted(set(Image.OPEN) - {'EPS'})


def read_image(path: Path) -> np.ndarray:
    """Read an image as a viewer shows it: upright by its EXIF tag, on white where it is transparent.

    Args:
        path (Path): a file that Pillow or OpenCV reads. Of several frames, the first is read.

    Returns:
        np.ndarray: (H, W, 3), RGB, uint8. Gray of 16 or 32 bits is scaled as :func:`scale_gray` does.

    Raises:
        UsageError: the file is no image, is damaged, or is larger than OpenCV reads.
    """
    try:
        with Image.open(path, formats=known_formats()) as image:
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
        return cv2.cvtColor(scale_gray(np.asarray(upright)), cv2.COLOR_GRAY2RGB)
    if 'A' in upright.getbands() or 'transparency' in upright.info:
        layers = upright.convert('RGBA')
        upright = Image.alpha_composite(Image.new('RGBA', layers.size, 'white'), layers)
    return np.array(upright.convert('RGB'))


def scale_gray(values: np.ndarray) -> np.ndarray:
    """Return gray values of 16 or 32 bits as uint8.

    White is 65535 for 16 bits and for values of up to 65535 (some versions of Pillow read 16 bits as 32), 255 for
    values of up to 255, 1 for floats of up to 1, and the largest finite value for others. Negative values and NaN are
    black. tools/deployment/run.py does the same.

    Args:
        values (np.ndarray): (H, W), integers or floats.
    """
    top = float(np.max(values, where=np.isfinite(values), initial=0))
    if values.dtype.itemsize == 2 or 255 < top <= 65535:
        top = 65535
    elif top <= 255:
        top = 1 if values.dtype.kind == 'f' and top <= 1 else 255
    gray = np.empty(values.shape, np.uint8)
    for row, line in zip(gray, values):  # row by row: a large image takes no second copy of more bytes
        row[:] = np.nan_to_num(np.clip(line * (255 / top), 0, 255)).round()
    return gray


def _turn(image: Image.Image) -> Image.Image:
    """Return an image upright; as it is stored if its EXIF data are malformed, as OpenCV does."""
    try:
        return ImageOps.exif_transpose(image)
    except (*PILLOW_ERRORS, TypeError, LookupError):
        return image.copy()
