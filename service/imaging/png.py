"""PNG files: check that the pixel data are complete.

Done here because Pillow accepts compressed data that end between two rows, leaving the remaining
rows zero, and has no option to reject them.
"""

import zlib
from collections.abc import Iterator

from PIL import Image

_SIGNATURE_BYTES = 8
_SAMPLES_PER_PIXEL = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By the color type of the header (IHDR)."""
# Adam7 interlacing: first column, first row, column step and row step of each pass.
_ADAM7_PASSES = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
_SINGLE_PASS = ((0, 0, 1, 1),)
_CHUNK_BYTES = 1 << 16


def has_all_rows(image: Image.Image, body: bytes) -> bool:
    """Return whether the data of a PNG that Pillow has loaded extend to its last row.

    Inflates the data a second time, and counts, only where the last row is all zero or the image
    is interlaced.
    """
    last_row = image.crop((0, image.height - 1, image.width, image.height)).tobytes()
    if last_row.count(0) < len(last_row) and not image.info.get("interlace"):
        return True
    depth, color_type, interlaced = body[24], body[25], body[28]
    bits_per_pixel = depth * _SAMPLES_PER_PIXEL[color_type]
    expected = _inflated_bytes(image.width, image.height, bits_per_pixel, bool(interlaced))
    return _inflates_to(expected, body)


def _inflates_to(expected_bytes: int, body: bytes) -> bool:
    """Return whether the data inflate to that many bytes.

    Stops there, and holds only one chunk in memory at a time.
    """
    inflator = zlib.decompressobj()
    inflated_bytes = 0
    try:
        for data in _image_data(body):
            while data and inflated_bytes < expected_bytes:
                inflated_bytes += len(inflator.decompress(data, _CHUNK_BYTES))
                data = inflator.unconsumed_tail
    except zlib.error:
        return False
    return inflated_bytes >= expected_bytes


def _inflated_bytes(width: int, height: int, bits_per_pixel: int, interlaced: bool) -> int:
    """Return the bytes of all rows, including the filter byte at the start of each."""
    total = 0
    passes = _ADAM7_PASSES if interlaced else _SINGLE_PASS
    for first_column, first_row, column_step, row_step in passes:
        columns = len(range(first_column, width, column_step))
        rows = len(range(first_row, height, row_step))
        total += rows * (1 + (columns * bits_per_pixel + 7) // 8) if columns else 0
    return total


def _image_data(body: bytes) -> Iterator[bytes]:
    """Yield the contents of the IDAT chunks."""
    position = _SIGNATURE_BYTES
    while position + 8 <= len(body):
        size, kind = (
            int.from_bytes(body[position : position + 4], "big"),
            body[position + 4 : position + 8],
        )
        if kind == b"IDAT":
            yield body[position + 8 : position + 8 + size]
        position += 12 + size
