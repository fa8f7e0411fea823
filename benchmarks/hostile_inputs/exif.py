"""EXIF blocks: TIFF directories with the orientation among other fields."""

import struct
from random import Random

_ORIENTATION = 0x0112


def exif_block(rng: Random) -> bytes:
    """Return a TIFF file without the ``Exif`` prefix of JPEG segments."""
    order, signature = rng.choice((("<", b"II*\0"), (">", b"MM\0*"), ("<", b"II+\0")))
    count = rng.choice((0, 1, 2, 20, 511, 512, 513, 5000))
    stated = count if rng.random() < 0.8 else rng.choice((0, 0xFFFF))
    position = rng.randrange(max(1, count))
    fields = b"".join(
        _field(rng, order, _ORIENTATION if index == position else rng.randrange(0x10000))
        for index in range(count)
    )
    offset = rng.choice((8, 8, 8, 0, 4, 0xFFFFFFFF, len(fields)))
    following = rng.choice((0, 8, 0xFFFFFFFF))  # 8: the directory refers to itself
    return b"".join(
        (
            signature,
            struct.pack(order + "I", offset),
            struct.pack(order + "H", stated),
            fields,
            struct.pack(order + "I", following),
        )
    )


def _field(rng: Random, order: str, tag: int) -> bytes:
    kind = rng.choice((3, 3, 3, 4, 2, 0, 13))
    count = rng.choice((1, 1, 1, 0, 0xFFFFFFFF))
    value = rng.choice((1, 3, 6, 8, 0, 9, 0xFFFF))
    return struct.pack(order + "HHIHH", tag, kind, count, value, 0)
