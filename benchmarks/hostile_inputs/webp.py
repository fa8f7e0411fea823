"""WebP files, chunk by chunk (RFC 9649), with generated lossless bit streams."""

import io
import struct
from functools import cache
from random import Random

from benchmarks.decoding_cost import webp_with_tables
from benchmarks.hostile_inputs.exif import exif_block
from benchmarks.hostile_inputs.mutations import mutate_some
from benchmarks.hostile_inputs.sides import image, stated_sides

_TABLE_SETS = (2, 64, 1 << 12)


def webp_file(rng: Random) -> bytes:
    """Return a WebP with generated or encoded image data among other chunks."""
    choice = rng.random()
    if choice < 0.003:
        return mutate_some(rng, _with_tables(rng.choice(_TABLE_SETS)))
    data = _encoded(rng) if choice < 0.6 else _lossless(rng) if choice < 0.85 else _lossy(rng)
    before, after = _metadata(rng), _metadata(rng)
    if before or after or rng.random() < 0.2:
        before.insert(0, _canvas(rng, data))
    chunks = [*before, data, *after]
    if rng.random() < 0.1:
        rng.shuffle(chunks)
    if rng.random() < 0.05:
        chunks *= rng.choice((2, 3))
    content = b"WEBP" + b"".join(chunks)
    size = len(content) if rng.random() < 0.95 else rng.choice((0, 4, 0x7FFFFFFF, 0xFFFFFFFF))
    return mutate_some(rng, b"RIFF" + struct.pack("<I", size) + content)


@cache
def _with_tables(sets: int) -> bytes:
    return webp_with_tables(sets)


def _chunk(rng: Random, kind: bytes, content: bytes) -> bytes:
    size = len(content)
    if rng.random() < 0.01:
        size = rng.choice((0, 1, size + 2, 0xFFFFFFFF))
    return kind + struct.pack("<I", size) + content + bytes(len(content) % 2)


def _encoded(rng: Random) -> bytes:
    """Return the image chunk of an encoder, in some cases with another size in its header."""
    buffer = io.BytesIO()
    source = image(rng).convert(rng.choice(("RGB", "RGB", "RGBA")))
    options = {"lossless": rng.random() < 0.5, "quality": rng.choice((0, 75, 100)), "method": 0}
    source.save(buffer, "WEBP", **options)
    body = buffer.getvalue()
    starts = [position for kind in (b"VP8 ", b"VP8L") if (position := body.find(kind)) > 0]
    chunk = body[min(starts) :]
    (size,) = struct.unpack_from("<I", chunk, 4)
    chunk = chunk[: 8 + size + size % 2]
    if rng.random() < 0.3:
        width, height = stated_sides(rng)
        if chunk[:4] == b"VP8 ":
            sides = struct.pack("<HH", width & 0x3FFF, height & 0x3FFF)
            return chunk[:14] + sides + chunk[18:]
        return chunk[:9] + _lossless_sides(rng, width, height) + chunk[13:]
    return chunk


def _lossless_sides(rng: Random, width: int, height: int) -> bytes:
    version = 0 if rng.random() < 0.95 else rng.randrange(8)
    bits = (width - 1) & 0x3FFF | ((height - 1) & 0x3FFF) << 14 | version << 29
    return struct.pack("<I", bits)


def _lossless(rng: Random) -> bytes:
    """Return a bit stream with transforms, a color cache and prefix codes of generated fields."""
    width, height = stated_sides(rng)
    fields: list[tuple[int, int]] = []
    for _ in range(rng.choice((0, 0, 1, 2, 4, 5))):  # transforms; each type may occur once
        fields += [(1, 1), (rng.randrange(4), 2), (rng.randrange(8), 3), (rng.randrange(256), 8)]
    fields.append((0, 1))
    has_cache = rng.random() < 0.3
    fields += [(has_cache, 1)] + [(rng.randrange(16), 4)] * has_cache
    has_sets = rng.random() < 0.4
    fields += [(has_sets, 1)] + [(rng.randrange(8), 3), (0, 1)] * has_sets
    for _ in range(rng.choice((5, 10, 10))):
        fields += _prefix_code(rng)
    bits = "".join(f"{value:0{width_bits}b}"[::-1] for value, width_bits in fields)
    bits += "0" * (-len(bits) % 8)
    data = bytes(int(bits[at : at + 8][::-1], 2) for at in range(0, len(bits), 8))
    size = rng.choice((0, 10, 300, 5000))
    data += rng.choice((bytes(size), rng.randbytes(size), b"\xff" * size))
    return _chunk(rng, b"VP8L", b"\x2f" + _lossless_sides(rng, width, height) + data)


def _prefix_code(rng: Random) -> list[tuple[int, int]]:
    if rng.random() < 0.7:  # one or two symbols
        is_two = rng.random() < 0.5
        first = [(1, 1), (rng.randrange(256), 8)] if rng.random() < 0.5 else [(0, 1), (0, 1)]
        return [(1, 1), (is_two, 1), *first] + [(rng.randrange(256), 8)] * is_two
    lengths = rng.randrange(16)
    return [(0, 1), (lengths, 4)] + [(rng.randrange(8), 3) for _ in range(4 + lengths)] + [(0, 1)]


def _lossy(rng: Random) -> bytes:
    """Return a key frame header followed by zeros or noise."""
    width, height = stated_sides(rng)
    size = rng.choice((0, 50, 500, 5000))
    data = rng.choice((bytes(size), rng.randbytes(size)))
    first_partition = rng.choice((size // 2, 0, 0x7FFFF))
    tag = struct.pack("<I", rng.choice((0x10, 0x10, 0x00, 0x11)) | first_partition << 5)[:3]
    scales = rng.choice((0, 0, 3))
    sides = struct.pack("<HH", (width & 0x3FFF) | scales << 14, (height & 0x3FFF) | scales << 14)
    return _chunk(rng, b"VP8 ", tag + b"\x9d\x01\x2a" + sides + data)


def _canvas(rng: Random, data: bytes) -> bytes:
    """Return a VP8X chunk, mostly with the size in the image data."""
    width, height = stated_sides(rng)
    if rng.random() < 0.8 and data[:4] == b"VP8 " and len(data) >= 18:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 14))
    elif rng.random() < 0.8 and data[:4] == b"VP8L" and len(data) >= 13:
        (bits,) = struct.unpack_from("<I", data, 9)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    flags = rng.choice((0, 0x08, 0x10, 0x20, 0x02, 0xFF))
    sides = struct.pack("<I", max(0, width - 1))[:3] + struct.pack("<I", max(0, height - 1))[:3]
    return _chunk(rng, b"VP8X", bytes((flags, 0, 0, 0)) + sides)


def _metadata(rng: Random) -> list[bytes]:
    if rng.random() < 0.6:
        return []
    kind = rng.choice(
        (b"EXIF", b"EXIF", b"ICCP", b"XMP ", b"ALPH", b"ANIM", b"ANMF", b"VP8X", b"abcd")
    )
    content = rng.choice((exif_block(rng), b"", rng.randbytes(rng.choice((1, 100, 5000)))))
    copies = rng.choice((1, 1, 1, 2, 4095, 4097, 50_000))
    if len(content) * copies > 4_000_000:
        copies = 20
    return [_chunk(rng, kind, content)] * copies
