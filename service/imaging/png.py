"""What is particular to PNG files."""

import zlib
from collections.abc import Iterator

from PIL import Image

_SIGNATURE_BYTES = 8
_SAMPLES_PER_PIXEL = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Adam7: first column, first row, column step, row step of each pass.
_PASSES = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
_ONE_PASS = ((0, 0, 1, 1),)
_CHUNK_BYTES = 1 << 16


def has_all_rows(image: Image.Image, body: bytes) -> bool:
    """Whether the compressed data of a PNG that Pillow has loaded went on to its last row.

    Pillow takes a stream that ends between two rows for whole, and leaves the others zero. Only
    where the last row is zero, or rows come interlaced, are the data inflated again and counted.
    """
    last_row = image.crop((0, image.height - 1, image.width, image.height)).tobytes()
    if last_row.count(0) < len(last_row) and not image.info.get("interlace"):
        return True
    depth, color_type, interlaced = body[24], body[25], body[28]
    bits = depth * _SAMPLES_PER_PIXEL[color_type]
    expected = _inflated_bytes(image.width, image.height, bits, bool(interlaced))
    return _inflates_to(expected, body)


def _inflates_to(expected: int, body: bytes) -> bool:
    """Whether there are that many bytes; stops there, and holds only a chunk at a time."""
    inflator = zlib.decompressobj()
    found = 0
    try:
        for data in _image_data(body):
            while data and found < expected:
                found += len(inflator.decompress(data, _CHUNK_BYTES))
                data = inflator.unconsumed_tail
    except zlib.error:
        return False
    return found >= expected


def _inflated_bytes(width: int, height: int, bits: int, interlaced: bool) -> int:
    """Bytes of all rows with the filter byte that begins each one."""
    total = 0
    for first_column, first_row, column_step, row_step in _PASSES if interlaced else _ONE_PASS:
        columns = len(range(first_column, width, column_step))
        rows = len(range(first_row, height, row_step))
        total += rows * (1 + (columns * bits + 7) // 8) if columns else 0
    return total


def _image_data(body: bytes) -> Iterator[bytes]:
    position = _SIGNATURE_BYTES
    while position + 8 <= len(body):
        size, kind = (
            int.from_bytes(body[position : position + 4], "big"),
            body[position + 4 : position + 8],
        )
        if kind == b"IDAT":
            yield body[position + 8 : position + 8 + size]
        position += 12 + size
