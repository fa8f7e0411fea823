"""BMP files with the headers of all versions."""

import struct
from random import Random

from benchmarks.hostile_inputs.mutations import mutate_some
from benchmarks.hostile_inputs.sides import stated_sides

_MAX_DATA_BYTES = 6_000_000


def bmp_file(rng: Random) -> bytes:
    """Return a BMP whose fields agree with each other or do not."""
    width, height = stated_sides(rng)
    if rng.random() < 0.2:
        height = -height
    header_bytes = rng.choice((40, 40, 40, 12, 124, 108, 56, 52, 64, 16, 0, 0xFFFFFFFF))
    bits = rng.choice((24, 24, 32, 8, 4, 1, 16, 0, 2, 64))
    compression = rng.choice((0, 0, 0, 0, 3, 1, 2, 4, 5, 6, 0xFFFFFFFF))
    colors = rng.choice((0, 0, 2, 16, 256, 257, 0xFFFFFFFF)) if bits <= 8 else 0
    if header_bytes == 12:
        header = struct.pack("<IHHHH", 12, width & 0xFFFF, height & 0xFFFF, 1, bits)
    else:
        planes = rng.choice((1, 1, 0, 0xFFFF))
        header = struct.pack("<IiiHHI", header_bytes, width, height, planes, bits, compression)
        header += struct.pack("<IiiII", rng.choice((0, 0xFFFFFFFF)), 0, 0, colors, 0)
        masks = rng.choice(
            ((0xFF0000, 0xFF00, 0xFF), (0xF800, 0x7E0, 0x1F), (0x7C00, 0x3E0, 0x1F), (0, 0, 0))
        )
        if compression == 3 or header_bytes > 40:
            header += struct.pack("<III", *masks)
        header = header.ljust(min(header_bytes, 200), b"\0")
    palette = rng.randbytes(4 * min(colors or (1 << min(bits, 8)), 300)) if bits <= 8 else b""
    offset = 14 + len(header) + len(palette)
    stated_offset = offset if rng.random() < 0.9 else rng.choice((0, 14, 0x7FFFFFFF, 0xFFFFFFFF))
    size = min((width * bits + 31) // 32 * 4 * abs(height), _MAX_DATA_BYTES)
    size = rng.choice((size, size, size, size // 2, 0))
    data = bytes(size) if compression == 0 else (b"\x00\x02\xff\xff" * size)[:size]
    file_header = b"BM" + struct.pack("<IHHI", offset + size, 0, 0, stated_offset)
    return mutate_some(rng, file_header + header + palette + data)
