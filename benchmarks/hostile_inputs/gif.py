"""GIF files, block by block (GIF89a specification)."""

import struct
from random import Random

from benchmarks.hostile_inputs.mutations import mutate_some
from benchmarks.hostile_inputs.sides import image, stated_sides

_MAX_DATA_BYTES = 4_000_000


def gif_file(rng: Random) -> bytes:
    """Return a GIF of encoded or generated codes, well-formed or wrong in some places."""
    width, height = stated_sides(rng)
    data = _codes(rng, width * height)
    if rng.random() < 0.4:
        gray = image(rng).convert("L")
        width, height = gray.size
        data = _encoded_codes(gray.tobytes())
    canvas = (width, height) if rng.random() < 0.85 else stated_sides(rng)
    flags = rng.choice((0x00, 0x80, 0x87, 0x87, 0xF7))
    screen = struct.pack(
        "<HHBBB", *(side & 0xFFFF for side in canvas), flags, rng.randrange(256), 0
    )
    palette = rng.randbytes(3 << (flags & 7) + 1) if flags & 0x80 else b""
    version = b"GIF89a" if rng.random() < 0.98 else rng.choice((b"GIF87a", b"GIF90a"))
    body = version + screen + palette
    for _ in range(rng.choice((0, 0, 1, 2))):
        body += _extension(rng)
    for _ in range(rng.choice((1, 1, 1, 2, 30))):
        body += _frame(rng, width, height, data)
    return mutate_some(rng, body + rng.choice((b";", b"", b";" + bytes(100))))


def _blocks(rng: Random, data: bytes) -> bytes:
    size = 255 if rng.random() < 0.9 else rng.choice((1, 7, 254))
    if len(data) // size > 200_000:
        size = 255
    parts = (data[at : at + size] for at in range(0, len(data), size))
    return b"".join(bytes((len(part),)) + part for part in parts) + (
        b"\0" if rng.random() < 0.95 else b""
    )


def _extension(rng: Random) -> bytes:
    label = rng.choice((0xF9, 0xF9, 0xFE, 0xFF, 0x01, 0x00))
    content = rng.choice(
        (
            bytes((rng.randrange(256), 1, 0, rng.randrange(256))),
            b"NETSCAPE2.0\x03\x01\0\0",
            rng.randbytes(rng.choice((0, 1, 300))),
            bytes(rng.choice((5_000, 900_000, 1_300_000))),
        )
    )
    copies = rng.choice((1, 1, 1, 2, 100, 4095, 4097)) if len(content) < 400 else 1
    return (b"\x21" + bytes((label,)) + _blocks(rng, content)) * copies


def _frame(rng: Random, width: int, height: int, data: bytes) -> bytes:
    left, top = rng.choice(((0, 0), (0, 0), (0, 0), (5, 7), (65_535, 65_535)))
    flags = rng.choice((0x00, 0x00, 0x40, 0x87, 0x82))
    palette = rng.randbytes(3 << (flags & 7) + 1) if flags & 0x80 else b""
    sides = (width & 0xFFFF, height & 0xFFFF)
    header = struct.pack("<BHHHHB", 0x2C, left, top, *sides, flags)
    code_bits = 8 if rng.random() < 0.9 else rng.choice((0, 1, 2, 11, 12, 255))
    return header + palette + bytes((code_bits,)) + _blocks(rng, data)


def _encoded_codes(pixels: bytes) -> bytes:
    """Return codes without a table: it is cleared before codes would need ten bits."""
    codes = []
    for at in range(0, len(pixels), 250):
        codes += [256, *pixels[at : at + 250]]
    return _packed([*codes, 257], 9)


def _packed(codes: list[int], bits: int) -> bytes:
    """Return codes of the same length, least significant bit first."""
    parts = []
    for at in range(0, len(codes), 8):
        group = codes[at : at + 8]
        value = sum(code << bits * index for index, code in enumerate(group))
        parts.append(value.to_bytes(-(-bits * len(group) // 8), "little"))
    return b"".join(parts)


def _codes(rng: Random, pixels: int) -> bytes:
    size = rng.choice((10, 500, 20_000))
    large = min(_MAX_DATA_BYTES, max(pixels, 10))
    return rng.choice(
        (
            rng.randbytes(size),
            bytes(size),
            _packed([256] * 8, 9) * (large // 9 if rng.random() < 0.05 else 20),  # only clears
            _packed([256, 1, *range(258, 500)], 9),  # growing strings
        )
    )
