"""Test images."""

import io
import math
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
    width: int,
    height: int,
    rows: Iterable[bytes],
    depth: int = 1,
    interlaced: bool = False,
    color_type: int = 0,
) -> bytes:
    """Return a PNG file of ``rows``, each with its filter byte; the header is independent.

    ``color_type``: 0 for grey, 2 for RGB.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    compressor = zlib.compressobj(9)
    body = b"".join(map(compressor.compress, rows)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, interlaced)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def largest_images(pixels: int) -> dict[str, bytes]:
    """Return square images whose decoding takes the most memory in their format, by name."""
    side = math.isqrt(pixels)
    image = Image.new("RGB", (side, side), (90, 90, 90))
    # CMYK has more scans, of which fewer pixels are accepted.
    cmyk = image.resize((side * 4 // 5, side * 4 // 5)).convert("CMYK")
    # Adam7: offset and step of each pass in x and y.
    passes = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2))
    rows = (
        bytes(1 + 6 * len(range(x, side, step_x)))
        for x, step_x, y, step_y in (*passes, (0, 1, 1, 2))
        for _ in range(y, side, step_y)
    )
    return {
        "lossless WebP": encode(image, "WEBP", lossless=True, method=0, quality=0),
        "progressive 4:4:4 JPEG": encode(image, "JPEG", progressive=True, subsampling=0),
        "progressive CMYK JPEG": encode(cmyk, "JPEG", progressive=True),
        "interlaced 16-bit RGB PNG": png_of_rows(side, side, rows, 16, True, 2),
    }
