"""Test images."""

import io
import struct
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image


def encode(pixels: np.ndarray | Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def plain(red: int, green: int, blue: int = 0, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """Return one colour, (height, width, 3); the default size is the tests' network input."""
    return np.full((*size, 3), (red, green, blue), np.uint8)


def quadrants(width: int = 96, height: int = 64) -> np.ndarray:
    """Four colours, so that every rotation and flip gives a different image."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (200, 30, 30)
    pixels[: height // 2, width // 2 :] = (30, 200, 30)
    pixels[height // 2 :, : width // 2] = (30, 30, 200)
    pixels[height // 2 :, width // 2 :] = (200, 200, 30)
    return pixels


def png_of_declared_size(width: int, height: int) -> bytes:
    """Return a small PNG file of zeros with all the rows that its header declares."""
    return png_of_rows(width, height, (bytes(1 + (width + 7) // 8) for _ in range(height)))


def png_of_rows(
    width: int, height: int, rows: Iterable[bytes], depth: int = 1, interlaced: bool = False
) -> bytes:
    """Return a grey PNG file of ``rows``, each with its filter byte; the header is independent."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    compressor = zlib.compressobj(9)
    body = b"".join(map(compressor.compress, rows)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, interlaced)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )
