"""TIFF files: directories whose tags agree with each other and with the data, or do not."""

import io
import struct
import zlib
from random import Random

from benchmarks.hostile_inputs.mutations import mutate_some
from benchmarks.hostile_inputs.sides import image, stated_sides

_Tags = dict[int, tuple[int, tuple[int, ...]]]
"""Types and values by tag."""
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 13: 4}
_COMPRESSIONS = (1, 1, 1, 5, 5, 8, 8, 32773, 32946, 7, 4, 50000, 34712, 0, 0xFFFF)
# Photometric interpretation and bits per sample.
_LAYOUTS = (
    *((1, (8,)), (1, (8,)), (2, (8, 8, 8)), (2, (8, 8, 8)), (2, (8, 8, 8, 8)), (0, (8,))),
    *((1, (1,)), (0, (1,)), (1, (4,)), (1, (16,)), (2, (16, 16, 16)), (2, (16, 16, 16, 16))),
    *((3, (8,)), (3, (4,)), (3, (1,)), (5, (8, 8, 8, 8)), (1, (8, 8)), (6, (8, 8, 8))),
    *((1, (32,)), (2, (8,) * 200), (1, (0,)), (8, (8, 8, 8)), (2, (1, 8, 16))),
)
_MAX_ROW_DATA = 1 << 24
_BOMB = zlib.compress(bytes(20_000_000), 9)


def tiff_file(rng: Random) -> bytes:
    """Return a TIFF, from Pillow with mutations or generated tag by tag."""
    if rng.random() < 0.2:
        buffer = io.BytesIO()
        mode = rng.choice(("RGB", "L", "1", "P", "CMYK", "RGBA", "LA"))
        compression = rng.choice(("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"))
        image(rng).convert(mode).save(buffer, "TIFF", compression=compression)
        return mutate_some(rng, buffer.getvalue())
    return mutate_some(rng, _generated(rng))


def _generated(rng: Random) -> bytes:
    order = rng.choice("<>")
    width, height = stated_sides(rng)
    photometric, bits = rng.choice(_LAYOUTS)
    compression = rng.choice(_COMPRESSIONS)
    tags: _Tags = {
        256: (rng.choice((3, 4)), (width & 0xFFFF,)),
        257: (rng.choice((3, 4)), (height & 0xFFFF,)),
        258: (3, bits),
        259: (3, (compression,)),
        262: (3, (photometric,)),
        277: (3, (len(bits) if rng.random() < 0.97 else rng.choice((0, 1, 4, 65535)),)),
    }
    _add_options(rng, tags, photometric, bits)
    row_bits = sum(bits)
    if rng.random() < 0.25:
        tile = rng.choice(((16, 16), (64, 64), (256, 256), (2048, 2048), (65520, 65520), (15, 16)))
        count = -(-width // tile[0]) * -(-height // tile[1])
        size = tile[0] * tile[1] * row_bits // 8
        tags |= {322: (4, (tile[0],)), 323: (4, (tile[1],))}
        offsets_tag, bytes_tag = 324, 325
    else:
        rows = rng.choice((height, height, 1, 8, 64, 0, 0xFFFFFFFF))
        tags[278] = (4, (rows,))
        count = -(-height // min(rows or 1, height or 1))
        size = min(rows or 1, height) * ((width * row_bits + 7) // 8)
        offsets_tag, bytes_tag = 273, 279
    count = min(count if rng.random() < 0.96 else rng.choice((0, count + 1, 70_000)), 70_000)
    data = _strip(rng, min(size, _MAX_ROW_DATA), compression)
    is_shared = rng.random() < 0.1
    copies = 1 if is_shared or len(data) * count > 8_000_000 else count
    offsets = [8 + len(data) * (index % max(1, copies)) for index in range(count)]
    tags[offsets_tag] = (4, tuple(offsets))
    tags[bytes_tag] = (4, (len(data),) * count)
    return _file(rng, order, tags, data * copies)


def _add_options(
    rng: Random,
    tags: _Tags,
    photometric: int,
    bits: tuple[int, ...],
) -> None:
    extra = len(bits) - {2: 3, 5: 4, 6: 3, 8: 3}.get(photometric, 1)
    if extra > 0 and rng.random() < 0.9:
        tags[338] = (3, tuple(rng.choices((0, 1, 2, 999), (4, 1, 4, 1), k=min(extra, 8))))
    if photometric == 3:
        values = 3 << min(bits[0], 8) if rng.random() < 0.95 else rng.choice((1, 768, 70_000))
        tags[320] = (3, tuple(rng.randrange(65536) for _ in range(min(values, 768))))
    for tag, values, share in (
        (274, (1, 3, 6, 8, 0, 99), 0.2),
        (266, (1, 2, 0), 0.1),
        (284, (1, 1, 2, 7), 0.3),
        (317, (1, 2, 3, 9), 0.3),
        (339, (1, 2, 3), 0.1),
        (254, (0, 1), 0.1),
    ):
        if rng.random() < share:
            tags[tag] = (3, (rng.choice(values),))


def _strip(rng: Random, size: int, compression: int) -> bytes:
    plain = bytes(size) if size > 300_000 or rng.random() < 0.5 else rng.randbytes(size)
    if rng.random() < 0.1:
        plain = plain[: size // 2]
    if compression in {8, 32946}:
        return _BOMB if rng.random() < 0.05 else zlib.compress(plain, 1)
    if compression == 5:  # clear codes among codes of nine bits
        codes = [256]
        for at in range(0, min(len(plain), 300_000), 200):
            codes += [256, *plain[at : at + 200]]
        if rng.random() < 0.05:
            codes = [256] * 300_000
        return _packed_big_endian([*codes, 257])
    if compression == 32773:
        if len(plain) < 300_000:
            parts = (plain[at : at + 128] for at in range(0, len(plain), 128))
            return b"".join(bytes((len(part) - 1,)) + part for part in parts)
        return b"\x81\0" * (size // 128 + 1)
    return plain


def _packed_big_endian(codes: list[int]) -> bytes:
    parts = []
    for at in range(0, len(codes), 8):
        group = codes[at : at + 8]
        value = 0
        for code in group + [0] * (8 - len(group)):
            value = value << 9 | code
        parts.append(value.to_bytes(9, "big"))
    return b"".join(parts)


def _file(rng: Random, order: str, tags: _Tags, data: bytes) -> bytes:
    """Return a file of the data and one directory after them."""
    entries, values = [], b""
    start = 8 + len(data)
    values_start = start + 2 + 12 * len(tags) + 4
    codes = {1: "B", 3: "H", 4: "I"}
    for tag, (kind, numbers) in sorted(tags.items()):
        limit = (1 << 8 * _SIZES[kind]) - 1
        packed = struct.pack(f"{order}{len(numbers)}{codes[kind]}", *(n & limit for n in numbers))
        count = len(numbers) if rng.random() < 0.995 else rng.choice((0, 7, 0xFFFFFFFF))
        written_kind = kind if rng.random() < 0.995 else rng.choice((0, 2, 5, 13, 99))
        if len(packed) <= 4:
            field = packed.ljust(4, b"\0")
        else:
            field = struct.pack(order + "I", values_start + len(values))
            values += packed
        entries.append(struct.pack(order + "HHI", tag, written_kind, count) + field)
    if rng.random() < 0.03:
        entries *= rng.choice((2, 40, 500))
    following = 0 if rng.random() < 0.95 else rng.choice((start, 8, 0xFFFFFFFF))
    magic = b"II*\0" if order == "<" else b"MM\0*"
    head = magic + struct.pack(order + "I", start if rng.random() < 0.99 else 0xFFFFFFF0)
    directory = struct.pack(order + "H", len(entries) & 0xFFFF) + b"".join(entries)
    return head + data + directory + struct.pack(order + "I", following) + values
