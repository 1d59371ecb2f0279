"""The size of an image on disk, from its header."""

from typing import NamedTuple, Optional

from PIL import Image, UnidentifiedImageError

EXIF_ORIENTATION = 0x0112


class ImageSize(NamedTuple):
    width: int  # as stored
    height: int
    is_turned: bool  # by EXIF orientation, which mmcv applies when it loads the image

    @property
    def loaded(self) -> tuple:
        """Width and height as mmcv loads the image."""
        return (self.height, self.width) if self.is_turned else (self.width, self.height)


def read_image_size(path: str) -> Optional[ImageSize]:
    """Return the size of the image in ``path``, or None if Pillow does not know its format.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(EXIF_ORIENTATION) in (5, 6, 7, 8)
            return ImageSize(*image.size, turned)
    except UnidentifiedImageError:
        return None
