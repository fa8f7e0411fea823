"""AVIF and HEIC files with boxes that the tests choose."""

import io
import struct
from collections.abc import Sequence
from typing import Any

from PIL import Image


def encode_avif(image: Image.Image, **options: Any) -> bytes:
    """Return an AVIF as libavif writes it."""
    buffer = io.BytesIO()
    image.save(buffer, "AVIF", speed=10, **options)
    return buffer.getvalue()


def encode_heic(image: Image.Image, **options: Any) -> bytes:
    """Return a HEIC as libheif writes it; needs pillow-heif."""
    import pillow_heif

    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, enc_params={"preset": "ultrafast"}, **options)
    return buffer.getvalue()


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def content_of(body: bytes, kind: bytes) -> bytes:
    """Return the content of the first box of a type."""
    at = body.index(kind)
    (size,) = struct.unpack_from(">I", body, at - 4)
    return body[at + 4 : at - 4 + size]


def heif_file(
    bodies: Sequence[bytes],
    grid: tuple[int, int] | None = None,
    size: tuple[int, int] | None = None,
    properties: Sequence[tuple[bytes, bytes]] = (),
    extents: Sequence[tuple[int, int]] | None = None,
) -> bytes:
    """Return the coded images of AVIF or HEIC files in one file: alone, or as a grid.

    ``grid``: rows and columns; ``size``: stated width and height; ``properties``: more properties
    of the primary image, which are essential. ``extents``: offsets in the data, and lengths, of the
    coded images.
    """
    first = bodies[0]
    item_type, configuration = (b"av01", b"av1C") if b"av1C" in first else (b"hvc1", b"hvcC")
    data = [body[body.index(b"mdat") + 4 :] for body in bodies]
    tile = content_of(first, b"ispe")
    whole = struct.pack(">III", 0, *size) if size else tile
    listed = [
        box(b"ispe", tile),
        box(configuration, content_of(first, configuration)),
        box(b"ispe", whole),
        box(b"colr", content_of(first, b"colr")),
        *(box(kind, content) for kind, content in properties),
    ]
    further = [0x80 | number for number in range(5, 5 + len(properties))]
    types = [item_type] * len(bodies)
    chosen = [[1, 0x82, 4]] * len(bodies)
    if extents is None:
        starts = [sum(map(len, data[:index])) for index in range(len(data))]
        extents = list(zip(starts, map(len, data), strict=True))
    payload, references = b"".join(data), b""
    if grid is None:
        chosen = [[3 if size else 1, 0x82, 4, *further]]
    else:
        assert size is not None
        types = [b"grid", *types]
        chosen = [[3, 4, *further], *chosen]
        description = bytes((0, 0, grid[0] - 1, grid[1] - 1)) + struct.pack(">HH", *size)
        extents = [(len(payload), len(description)), *extents]
        payload += description
        numbers = range(2, len(types) + 1)
        links = struct.pack(f">HH{len(numbers)}H", 1, len(numbers), *numbers)
        references = box(b"iref", bytes(4) + box(b"dimg", links))
    items = b"".join(
        box(b"infe", struct.pack(">IHH", 2 << 24, number, 0) + kind + b"\0")
        for number, kind in enumerate(types, 1)
    )
    associations = b"".join(
        struct.pack(">HB", number, len(indices)) + bytes(indices)
        for number, indices in enumerate(chosen, 1)
    )

    def meta(start: int) -> bytes:
        locations = struct.pack(">IHH", 0, 0x4400, len(types)) + b"".join(
            struct.pack(">HHHII", number, 0, 1, start + offset, length)
            for number, (offset, length) in enumerate(extents, 1)
        )
        return box(
            b"meta",
            bytes(4)
            + box(b"hdlr", bytes(8) + b"pict" + bytes(13))
            + box(b"pitm", struct.pack(">IH", 0, 1))
            + box(b"iloc", locations)
            + box(b"iinf", struct.pack(">IH", 0, len(types)) + items)
            + references
            + box(
                b"iprp",
                box(b"ipco", b"".join(listed))
                + box(b"ipma", struct.pack(">II", 0, len(types)) + associations),
            ),
        )

    head = box(b"ftyp", (b"avif" if item_type == b"av01" else b"heic") + bytes(4) + b"mif1miaf")
    return head + meta(len(head) + len(meta(0)) + 8) + box(b"mdat", payload)
