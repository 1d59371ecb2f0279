"""Pictures that one reader takes and another does not."""

import struct
import zlib
from pathlib import Path
from typing import Optional

MALFORMED_EXIF = (b'no TIFF header', b'MM\0', b'')


def write_png(path: Path, width: int, height: int, exif: Optional[bytes] = None) -> None:
    """Write a black PNG of 1 bit a pixel, with ``exif`` as its eXIf chunk if any, without holding its pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))

    compress, row = zlib.compressobj(), bytes(1 + -(-width // 8))
    pixels = b''.join(compress.compress(row) for _ in range(height)) + compress.flush()
    header = struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)
    chunks = [(b'IHDR', header), (b'eXIf', exif), (b'IDAT', pixels), (b'IEND', b'')]
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*c) for c in chunks if c[0] != b'eXIf' or exif is not None))
