"""Header of a TIFF file: its first image.

Files describe their data by tags that need not agree with each other: strips may overlap, a tile
may be larger than memory, and a list of tags may refer to itself. The tags that the pixels depend
on are therefore checked and written to a new directory; a decoder sees no others.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from service.imaging.image_header import HeaderError, ImageHeader, UnsupportedHeaderError

SIGNATURES: Mapping[bytes, str] = {b"II*\0": "<", b"MM\0*": ">"}
"""First bytes of a TIFF, and its byte order."""

MAX_FIELDS = 512
"""Fields of the directory that are read; cameras write about a hundred."""
MAX_STRIPS = 1 << 16
"""Strips or tiles of an image."""
MAX_TILE_PX = 1 << 22
"""Pixels of a tile; usual are 256 x 256."""

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANES = 273, 274, 277, 278, 279, 284
_PREDICTOR, _COLORS, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 317, 320, 338, 339
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
_SHORT, _LONG = 3, 4
_DTYPES = {_SHORT: "u2", _LONG: "u4"}
_MAX_COUNTS = {
    **dict.fromkeys((_BITS, _SAMPLES, _EXTRA_SAMPLES, _SAMPLE_FORMAT), 8),
    **dict.fromkeys((_STRIP_OFFSETS, _STRIP_BYTES, _TILE_OFFSETS, _TILE_BYTES), MAX_STRIPS),
    _COLORS: 3 << 8,
}
_SINGLE = frozenset(
    {
        *(_WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _ORIENTATION, _SAMPLES),
        *(_ROWS, _PLANES, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT),
    }
)
_READ = _SINGLE | _MAX_COUNTS.keys()

_UNCOMPRESSED, _LZW, _DEFLATE, _OLD_DEFLATE, _PACKBITS = 1, 5, 8, 32946, 32773
_COMPRESSIONS = frozenset({_UNCOMPRESSED, _LZW, _DEFLATE, _OLD_DEFLATE, _PACKBITS})
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK = 0, 1, 2, 3, 5
_NO_PREDICTOR, _HORIZONTAL = 1, 2
# Bits of each sample by photometric interpretation, and the number of further samples.
_LAYOUTS = frozenset(
    {
        *((_WHITE_IS_ZERO, bits, 0) for bits in ((1,), (4,), (8,))),
        *((_BLACK_IS_ZERO, bits, 0) for bits in ((1,), (4,), (8,), (16,))),
        (_BLACK_IS_ZERO, (8, 8), 1),
        *((_RGB, (bits,) * 3, 0) for bits in (8, 16)),
        *((_RGB, (bits,) * 4, 1) for bits in (8, 16)),
        *((_PALETTE, bits, 0) for bits in ((1,), (2,), (4,), (8,))),
        (_CMYK, (8, 8, 8, 8), 0),
    }
)
_UNSPECIFIED, _PREMULTIPLIED, _ALPHA = 0, 1, 2

_Values = tuple[int, ...]


@dataclass(frozen=True)
class _Layout:
    """Strips or tiles: the tags of the new directory, and the bytes of the largest one."""

    fields: dict[int, _Values]
    offsets_tag: int
    max_bytes: int


def read_tiff_header(body: bytes) -> ImageHeader:
    """Read the first directory, check that its tags agree, and write a new one before the data.

    Raises :class:`HeaderError` and :class:`UnsupportedHeaderError`.
    """
    order = SIGNATURES[body[:4]]
    tags = _read_directory(body, order)
    width, height = _one(tags, _WIDTH), _one(tags, _HEIGHT)
    pixel_fields = _pixel_fields(tags)
    layout = _layout(tags, width, height, sum(pixel_fields[_BITS]), len(body))
    fields = {_WIDTH: (width,), _HEIGHT: (height,), **pixel_fields, **layout.fields}
    orientation = _one(tags, _ORIENTATION, 1)
    return ImageHeader(
        "TIFF",
        width,
        height,
        orientation if 1 <= orientation <= 8 else 1,
        (_directory(order, fields, layout.offsets_tag), memoryview(body)),
        buffer_bytes=layout.max_bytes,
    )


def _read_directory(body: bytes, order: str) -> dict[int, _Values]:
    """Return the values of the known tags of the first directory."""
    try:
        (start,) = struct.unpack_from(order + "I", body, 4)
        (count,) = struct.unpack_from(order + "H", body, start)
        if count > MAX_FIELDS:
            raise UnsupportedHeaderError(
                f"The TIFF has {count} tags; at most {MAX_FIELDS} are accepted. "
                "Save it again with a standard encoder."
            )
        tags: dict[int, _Values] = {}
        for position in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(order + "HHI", body, position)
            if tag in _READ and tag not in tags:
                tags[tag] = _read_values(body, order, position, (tag, kind, values))
    except struct.error:
        raise HeaderError("its list of tags is incomplete") from None
    return tags


def _read_values(body: bytes, order: str, position: int, field: tuple[int, int, int]) -> _Values:
    tag, kind, count = field
    limit = _MAX_COUNTS.get(tag, 1)
    if kind not in _DTYPES or not 1 <= count <= limit:
        raise HeaderError(f"its tag {tag} has {count} values of type {kind}")
    dtype = np.dtype(order + _DTYPES[kind])
    start = position + 8
    if count * dtype.itemsize > 4:
        (start,) = struct.unpack_from(order + "I", body, start)
    if start + count * dtype.itemsize > len(body):
        raise HeaderError(f"the values of its tag {tag} extend beyond its end")
    return tuple(np.frombuffer(body, dtype, count, start).tolist())


def _one(tags: Mapping[int, _Values], tag: int, default: int | None = None) -> int:
    values = tags.get(tag, () if default is None else (default,))
    if not values:
        raise HeaderError(f"its tag {tag} is missing")
    return values[0]


def _pixel_fields(tags: Mapping[int, _Values]) -> dict[int, _Values]:
    """Return the tags that describe a pixel and its compression; refuse unusual ones."""
    compression = _one(tags, _COMPRESSION, _UNCOMPRESSED)
    if compression not in _COMPRESSIONS:
        raise UnsupportedHeaderError(
            f"The TIFF is compressed with method {compression}; none, LZW, Deflate and PackBits "
            "are accepted. Save it with one of them, or as PNG or JPEG."
        )
    photometric, samples = _one(tags, _PHOTOMETRIC), _one(tags, _SAMPLES, 1)
    extra = tags.get(_EXTRA_SAMPLES, ())
    bits = tags.get(_BITS, (1,))
    bits = bits * samples if len(bits) == 1 and samples <= 8 else bits
    sample_formats = set(tags.get(_SAMPLE_FORMAT, (1,)))
    predictor = _one(tags, _PREDICTOR, _NO_PREDICTOR)
    is_usual = (
        (photometric, bits, len(extra)) in _LAYOUTS
        and len(bits) == samples
        and set(extra) <= {_UNSPECIFIED, _PREMULTIPLIED, _ALPHA}
        and (photometric == _RGB or _PREMULTIPLIED not in extra)
        and sample_formats == {1}
        and _one(tags, _PLANES, 1) == 1
        and _one(tags, _FILL_ORDER, 1) == 1
        and (predictor == _NO_PREDICTOR or (predictor == _HORIZONTAL and bits[0] >= 8))
    )
    if not is_usual:
        raise UnsupportedHeaderError(
            f"The TIFF has {samples} samples of {', '.join(map(str, bits))} bits with the "
            f"photometric interpretation {photometric}, or an unusual order; gray of 1, 4, 8 and "
            "16 bits, RGB of 8 and 16 bits, palettes and CMYK are accepted, with or without one "
            "alpha channel, the samples of a pixel together. Save it as PNG."
        )
    fields = {
        _BITS: bits,
        _COMPRESSION: (compression,),
        _PHOTOMETRIC: (photometric,),
        _SAMPLES: (samples,),
        _PLANES: (1,),
    }
    if predictor == _HORIZONTAL and compression in {_LZW, _DEFLATE, _OLD_DEFLATE}:
        fields[_PREDICTOR] = (predictor,)
    if extra:
        fields[_EXTRA_SAMPLES] = extra
    if photometric == _PALETTE:
        colors = tags.get(_COLORS, ())
        if len(colors) != 3 << bits[0]:
            raise HeaderError(f"its palette has {len(colors)} values for {bits[0]} bits")
        fields[_COLORS] = colors
    return fields


def _layout(
    tags: Mapping[int, _Values], width: int, height: int, pixel_bits: int, file_bytes: int
) -> _Layout:
    """Return the strips or tiles; their number must follow from their size.

    Data beyond the end of the file are refused, and data that are used several times.
    """
    if _TILE_OFFSETS in tags:
        tile_width, tile_height = _one(tags, _TILE_WIDTH), _one(tags, _TILE_HEIGHT)
        is_multiple = tile_width % 16 == tile_height % 16 == 0
        if not is_multiple or not 0 < tile_width * tile_height <= MAX_TILE_PX:
            raise UnsupportedHeaderError(
                f"The TIFF has tiles of {tile_width} x {tile_height} pixels; multiples of 16 with "
                f"at most {MAX_TILE_PX} pixels are accepted. Save it again with smaller tiles."
            )
        count = -(-width // tile_width) * -(-height // tile_height)
        sizes = {_TILE_WIDTH: (tile_width,), _TILE_HEIGHT: (tile_height,)}
        offsets_tag, bytes_tag = _TILE_OFFSETS, _TILE_BYTES
        rows, row_bytes = tile_height, -(-tile_width * pixel_bits // 8)
    else:
        rows = max(1, min(_one(tags, _ROWS, height), height))
        count = -(-height // rows)
        sizes = {_ROWS: (rows,)}
        offsets_tag, bytes_tag = _STRIP_OFFSETS, _STRIP_BYTES
        row_bytes = -(-width * pixel_bits // 8)
    offsets, byte_counts = tags.get(offsets_tag, ()), tags.get(bytes_tag, ())
    if not len(offsets) == len(byte_counts) == count:
        raise HeaderError(
            f"it has {len(offsets)} offsets and {len(byte_counts)} sizes of {count} strips or tiles"
        )
    if max(map(sum, zip(offsets, byte_counts, strict=True))) > file_bytes:
        raise HeaderError("a strip or tile extends beyond its end")
    if sum(byte_counts) > file_bytes:
        raise HeaderError("its strips or tiles overlap")
    fields = {**sizes, offsets_tag: offsets, bytes_tag: byte_counts}
    return _Layout(fields, offsets_tag, rows * row_bytes)


def _directory(order: str, fields: Mapping[int, _Values], offsets_tag: int) -> bytes:
    """Return the start of a file: its signature and one directory, for data that follow it."""
    kinds = {tag: _kind(values) for tag, values in fields.items()}
    kinds[offsets_tag] = _LONG
    sizes = {tag: len(fields[tag]) * (2 if kinds[tag] == _SHORT else 4) for tag in fields}
    values_start = 8 + 2 + 12 * len(fields) + 4
    data_start = values_start + sum(size + size % 2 for size in sizes.values() if size > 4)
    entries, values = [], []
    position = values_start
    for tag in sorted(fields):
        numbers = np.array(fields[tag], np.int64) + (data_start if tag == offsets_tag else 0)
        packed = numbers.astype(order + _DTYPES[kinds[tag]]).tobytes()
        entry = struct.pack(order + "HHI", tag, kinds[tag], len(numbers))
        if len(packed) <= 4:
            entries.append(entry + packed.ljust(4, b"\0"))
        else:
            entries.append(entry + struct.pack(order + "I", position))
            packed += bytes(len(packed) % 2)
            values.append(packed)
            position += len(packed)
    signature = next(start for start, name in SIGNATURES.items() if name == order)
    head = signature + struct.pack(order + "IH", 8, len(fields))
    return b"".join((head, *entries, bytes(4), *values))


def _kind(values: _Values) -> int:
    return _SHORT if max(values) < 1 << 16 else _LONG
