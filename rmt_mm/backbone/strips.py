"""Compute large maps in strips of rows, on the CPU without gradients.

Strips stay in the processor's cache, and the C library reuses their memory, which it would return to the system after
each use of a large map.
"""

from typing import Iterator, Tuple

# Maps of up to this many bytes are computed as a whole. With fewer rows than MIN_STRIP_ROWS, the rows that two strips
# share would cost too much.
MAX_MAP_BYTES = 2**24
MIN_STRIP_ROWS = 8


def strip_rows(num_rows: int, row_bytes: int, strip_bytes: int) -> int:
    """Return the rows of a strip of about ``strip_bytes``, or 0 if maps of ``num_rows`` rows need no strips."""
    return max(MIN_STRIP_ROWS, strip_bytes // row_bytes) if num_rows * row_bytes > MAX_MAP_BYTES else 0


def strips(batch: int, height: int, rows: int) -> Iterator[Tuple[slice, int]]:
    """Split maps of ``height`` rows into strips of ``rows`` rows of one image, or of as many whole images as have them.

    Yields:
        tuple[slice, int]: the images of a strip, and its first row.
    """
    images = max(1, rows // height)
    for first in range(0, batch, images):
        for top in range(0, height, rows):
            yield slice(first, first + images), top
