"""Header of a JPEG file.

Neither simplejpeg nor Pillow has a limit on scans, so they are bounded here. Up to the first scan,
segments are read by the rules of libjpeg's ``next_marker``: a marker is 0xFF and a byte other than
0x00 and 0xFF, and all but the restart markers and TEM have a length. From there on nothing is
parsed: a decoder cannot decode more scans than the data that it is given contain the bytes
``FF DA``.
"""

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from service.imaging.exif import orientation_from_exif
from service.imaging.image_header import (
    HeaderError,
    ImageHeader,
    UnsupportedHeaderError,
    too_many_parts,
)

MAX_SEGMENTS = 512
"""Segments before the first scan."""
MAX_SCANS = 100
MAX_SCANNED_PIXELS = 600_000_000
"""Limit on scans times pixels. A file can repeat scans at almost no cost in bytes, but decoding
each one takes a pass over the whole image. Encoders write about ten scans."""

_MARKER = re.compile(rb"\xff[^\x00\xff]")
_MAX_FILL_BYTES = 1 << 12
"""Bytes outside segments before the first scan, in total; libjpeg skips them."""
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_DECODED_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_PROGRESSIVE, _SCAN, _EXIF = 0xC2, 0xDA, 0xE1
# Tables, restart interval, JFIF and Adobe: all that the pixels depend on.
_KEPT = frozenset({0xC4, 0xDB, 0xDD, 0xE0, 0xEE})
_IGNORED = frozenset({*range(0xE1, 0xF0), 0xFE, 0xDC, 0xCC} - _KEPT)
_MAX_TABLE_BYTES = 1 << 16
_COUNTED_AT_ONCE = 1 << 17
_SCAN_BYTES, _END_BYTES = 0xDAFF, 0xD9FF


def read_jpeg_header(body: bytes) -> ImageHeader:
    """Read the segments before the first scan, and bound the number of scans.

    Raises :class:`HeaderError` and :class:`UnsupportedHeaderError`.
    """
    position, exif, frame, table_bytes, fill_bytes = 2, b"", None, 0, 0
    parts: list[bytes | memoryview] = [body[:2]]
    view = memoryview(body)
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(body, position, position + _MAX_FILL_BYTES - fill_bytes)
        if found is None:
            raise HeaderError("it has no frame or no scan")
        start, kind = found.start(), body[found.start() + 1]
        fill_bytes += start - position
        position = found.end()
        if kind in _WITHOUT_LENGTH:
            continue
        position += max(2, int.from_bytes(body[position : position + 2], "big"))
        if position > len(body):
            raise HeaderError("a segment extends beyond its end")
        if kind in _FRAMES:
            if frame is not None:
                raise HeaderError("it has two frames")
            frame = (kind, body[start + 4 : position])
            parts.append(view[start:position])
        elif kind == _SCAN:
            if frame is None:
                raise HeaderError("a scan precedes the frame")
            return _with_frame(body, start, parts, frame, orientation_from_exif(exif))
        elif kind == _EXIF and not exif and body[start + 4 : start + 10] == b"Exif\0\0":
            exif = body[start + 4 : position]
        elif kind in _KEPT:
            table_bytes += position - start
            if table_bytes > _MAX_TABLE_BYTES:
                raise UnsupportedHeaderError(
                    f"The JPEG has more than {_MAX_TABLE_BYTES} bytes of tables. "
                    "Save it again with a standard encoder."
                )
            parts.append(view[start:position])
        elif kind not in _IGNORED:
            raise HeaderError(f"marker 0x{kind:02x} is not allowed before the first scan")
    raise too_many_parts(MAX_SEGMENTS, "JPEG segments before the pixel data")


def _with_frame(
    body: bytes,
    scan_start: int,
    parts: list[bytes | memoryview],
    frame: tuple[int, bytes],
    orientation: int,
) -> ImageHeader:
    kind, fields = frame
    if kind not in _DECODED_FRAMES or fields[:1] != b"\x08":
        raise UnsupportedHeaderError(
            f"The JPEG is of type SOF{kind - 0xC0} with {fields[0] if fields else 0} bits per "
            "sample; baseline, extended and progressive JPEGs with Huffman coding and 8 bits are "
            "accepted. Save it again with a standard encoder."
        )
    if len(fields) < 6 or len(fields) != 6 + 3 * fields[5]:
        raise HeaderError("its frame header has a wrong length")
    channels = fields[5]
    if channels not in {1, 3, 4}:
        raise UnsupportedHeaderError(
            f"The JPEG has {channels} components; 1 (gray), 3 (color) and 4 (CMYK) are accepted."
        )
    height, width = int.from_bytes(fields[1:3], "big"), int.from_bytes(fields[3:5], "big")
    is_multi_scan = kind == _PROGRESSIVE or body[scan_start + 4 : scan_start + 5] != bytes(
        [channels]
    )
    end, scans = (
        _end_and_scans(body, scan_start, scan_limit(width * height))
        if is_multi_scan
        else (len(body), 1)
    )
    return ImageHeader(
        "JPEG",
        width,
        height,
        orientation,
        (*parts, memoryview(body)[scan_start:end]),
        channels,
        scans,
        _coefficient_bytes(width, height, fields) if is_multi_scan else 0,
    )


def _coefficient_bytes(width: int, height: int, fields: bytes) -> int:
    """Return the memory for all coefficients, 2 bytes each, by the sampling factors."""
    factors = [(value >> 4, value & 15) for value in fields[7::3]]
    if not all(1 <= h <= 4 and 1 <= v <= 4 for h, v in factors):
        raise HeaderError("a sampling factor is not 1 to 4")
    columns = -(-width // (8 * max(h for h, _ in factors)))
    rows = -(-height // (8 * max(v for _, v in factors)))
    return 128 * sum(columns * h * rows * v for h, v in factors)


def _end_and_scans(body: bytes, start: int, max_scans: int) -> tuple[int, int]:
    """Return the end of the data to decode, and an upper bound of the scans that they contain.

    The data end at the first ``FF D9`` if the whole file, which may contain further images or a
    video, seems to have too many scans.
    """
    end = len(body)
    scans = sum(np.count_nonzero(part == _SCAN_BYTES) for _, part in _pairs(body, start, end))
    if scans <= max_scans:
        return end, int(scans)
    for position, part in _pairs(body, start, end):
        if position >= end:
            break
        is_end = part == _END_BYTES
        first = int(is_end.argmax())
        if is_end[first]:
            end = min(end, position + 2 * first + 2)
    scans = sum(np.count_nonzero(part == _SCAN_BYTES) for _, part in _pairs(body, start, end))
    return end, int(scans)


def _pairs(body: bytes, start: int, end: int) -> Iterator[tuple[int, NDArray[np.uint16]]]:
    """Yield all pairs of adjacent bytes, little endian, in parts that fit into a cache."""
    for first in range(start, end - 1, _COUNTED_AT_ONCE):
        for position in (first, first + 1):
            count = (min(position + _COUNTED_AT_ONCE, end) - position) // 2
            if count:
                yield position, np.frombuffer(body, "<u2", count, position)


def scan_limit(pixels: int) -> int:
    """Return the number of scans that a JPEG of so many pixels may have."""
    return min(MAX_SCANS, MAX_SCANNED_PIXELS // max(1, pixels))
