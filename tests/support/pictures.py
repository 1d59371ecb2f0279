"""Pictures that one reader takes and another does not."""

import io
import struct
import zlib
from pathlib import Path
from typing import Optional

from PIL import Image

MALFORMED_EXIF = (b'no TIFF header', b'MM\0', b'')


def write_png(path: Path, width: int, height: int, exif: Optional[bytes] = None) -> None:
    """Write a black PNG of 1 bit a pixel, with ``exif`` as its eXIf chunk if any, without holding its pixels."""
    compress, row = zlib.compressobj(), bytes(1 + -(-width // 8))
    pixels = b''.join(compress.compress(row) for _ in range(height)) + compress.flush()
    path.write_bytes(join_png(width, height, 1, pixels, exif))


def join_png(width: int, height: int, bits: int, pixels: bytes, exif: Optional[bytes] = None) -> bytes:
    """Return a gray PNG that says it has these sides and bits, of compressed ``pixels``, which need not be as many."""
    header = struct.pack('>IIBBBBB', width, height, bits, 0, 0, 0, 0)
    chunks = [(b'IHDR', header), (b'eXIf', exif), (b'IDAT', pixels), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))
        for kind, content in chunks
        if content is not None
    )


def encode(image: Image.Image, kind: str, **options) -> bytes:
    """Return the file of an image in a format of Pillow."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()
