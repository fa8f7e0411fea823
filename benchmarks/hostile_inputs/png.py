"""PNG files, chunk by chunk (https://www.w3.org/TR/png-3)."""

import struct
import zlib
from random import Random

from benchmarks.hostile_inputs.exif import exif_block
from benchmarks.hostile_inputs.mutations import mutate_some
from benchmarks.hostile_inputs.sides import stated_sides

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_BOMB_BYTES = 20_000_000
_BOMB = zlib.compress(bytes(_BOMB_BYTES), 9)
_MAX_DATA_BYTES = 4_000_000
_MAX_ROW_BYTES = 1 << 27
"""Limit on uncompressed rows; those of the largest images are incomplete."""


def png_file(rng: Random) -> bytes:
    """Return a PNG with generated rows and chunks, well-formed or wrong in some places."""
    color_type = rng.choice((*_SAMPLES, *_SAMPLES, *_SAMPLES, *_SAMPLES, 1))
    depth = rng.choice(_DEPTHS.get(color_type, (8,)) if rng.random() < 0.95 else (0, 3, 32))
    interlace = rng.choice((0, 0, 0, 1, 1, 2) if rng.random() < 0.1 else (0, 1))
    width, height = stated_sides(rng)
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, interlace)
    if rng.random() < 0.03:
        header = header[: rng.randrange(13)] + rng.randbytes(rng.randrange(20))
    chunks = [_chunk(rng, b"IHDR", header), *_metadata(rng)]
    if color_type == 3 or rng.random() < 0.1:
        chunks.append(
            _chunk(rng, b"PLTE", rng.randbytes(3 * rng.choice((1, 16, 256, 256, 256, 0, 300))))
        )
    if rng.random() < 0.2:
        chunks.append(_chunk(rng, b"tRNS", rng.randbytes(rng.choice((1, 2, 6, 256, 5000)))))
    row_bytes = (width * depth * _SAMPLES.get(color_type, 1) + 7) // 8 + 1
    data = _image_data(rng, row_bytes, height * (1 + interlace % 2))
    chunks += [_chunk(rng, b"IDAT", part) for part in _parts(rng, data)]
    chunks += _metadata(rng)
    if rng.random() < 0.05:
        rng.shuffle(chunks)
    if rng.random() < 0.95:
        chunks.append(_chunk(rng, b"IEND", b""))
    return mutate_some(rng, _SIGNATURE + b"".join(chunks) + rng.choice((b"", b"", bytes(100))))


def _chunk(rng: Random, kind: bytes, content: bytes) -> bytes:
    size = len(content)
    if rng.random() < 0.002:
        size = rng.choice((0, size + 1, 0x7FFFFFFF, 0xFFFFFFFF))
    checksum = zlib.crc32(kind + content) ^ (rng.random() < 0.002)
    return struct.pack(">I", size) + kind + content + struct.pack(">I", checksum)


def _image_data(rng: Random, row_bytes: int, rows: int) -> bytes:
    """Return compressed rows: as many as needed, fewer, or far more."""
    choice = rng.random()
    if choice < 0.03:
        return _BOMB
    if choice < 0.06:
        return rng.randbytes(rng.choice((0, 3, 500)))
    if choice < 0.1:
        rows = rng.choice((0, rows // 2, 2 * rows))
    rows = min(rows, _MAX_ROW_BYTES // row_bytes)
    is_small = row_bytes * rows < _MAX_DATA_BYTES
    row = rng.randbytes(row_bytes) if is_small and rng.random() < 0.5 else bytes(row_bytes)
    filter_type = rng.choice((0, 1, 2, 3, 4, 4, 5, 255) if rng.random() < 0.3 else (0, 1, 2, 3, 4))
    return zlib.compress((bytes((filter_type,)) + row[1:]) * rows, 1)


def _parts(rng: Random, data: bytes) -> list[bytes]:
    """Split the data into one or many chunks."""
    size = rng.choice((len(data), len(data), 8192, 100, 1))
    if size and len(data) / size > 20_000:
        size = len(data)
    return [data[at : at + size] for at in range(0, len(data), size)] if size else [data]


def _metadata(rng: Random) -> list[bytes]:
    if rng.random() < 0.6:
        return []
    kind = rng.choice(
        (
            *(b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"gAMA", b"cHRM", b"sPLT", b"hIST"),
            *(b"acTL", b"fcTL", b"fdAT", b"IDAT", b"PLTE", b"IHDR", b"abcd", b"ABCD", b"\0\0\0\0"),
        )
    )
    content = rng.choice(
        (
            b"name\0\0" + _BOMB,
            b"name\0\0" + zlib.compress(rng.randbytes(100)),
            exif_block(rng),
            b"",
            rng.randbytes(rng.choice((4, 32, 5000))),
        )
    )
    copies = rng.choice((1, 1, 1, 3, 500, 4095, 4097, 30_000))
    if len(content) * copies > _MAX_DATA_BYTES:
        copies = 20
    return [_chunk(rng, kind, content)] * copies
