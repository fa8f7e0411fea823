"""AVIF and HEIC files: boxes around encoded images, with fields that lie.

The images come from an encoder: codes of AV1 and HEVC that decode at all cannot be generated
without one. Their bytes are mutated as those of the boxes are.
"""

import io
import struct
from functools import cache
from random import Random

from PIL import Image

from benchmarks.hostile_inputs.mutations import mutate_some
from benchmarks.hostile_inputs.sides import image, stated_sides

_SEEDS = 24
"""Images of each codec; encoding takes longer than decoding."""


def avif_file(rng: Random) -> bytes:
    """Return an AVIF, as it is written by libavif or box by box."""
    body = _encoded_avif(rng.randrange(_SEEDS))
    return mutate_some(rng, body if rng.random() < 0.3 else _rebuilt(rng, body, b"av01", b"av1C"))


def heic_file(rng: Random) -> bytes:
    """Return a HEIC, as it is written by libheif or box by box; needs pillow-heif."""
    body = _encoded_heic(rng.randrange(_SEEDS))
    return mutate_some(rng, body if rng.random() < 0.3 else _rebuilt(rng, body, b"hvc1", b"hvcC"))


@cache
def _encoded_avif(seed: int) -> bytes:
    rng = Random(f"avif/{seed}")
    buffer = io.BytesIO()
    options = {
        "subsampling": rng.choice(("4:2:0", "4:4:4", "4:0:0")),
        "quality": rng.choice((20, 60, 100)),
    }
    _image(rng).save(buffer, "AVIF", speed=10, **options)
    return buffer.getvalue()


@cache
def _encoded_heic(seed: int) -> bytes:
    import pillow_heif

    rng = Random(f"heic/{seed}")
    buffer = io.BytesIO()
    file = pillow_heif.from_pillow(_image(rng))
    quality, chroma = rng.choice((20, 60, 95)), rng.choice((420, 444))
    file.save(buffer, quality=quality, chroma=chroma, enc_params={"preset": "ultrafast"})
    return buffer.getvalue()


def _image(rng: Random) -> Image.Image:
    original = image(rng)
    return original.resize((64, 64)) if rng.random() < 0.7 else original


def _rebuilt(rng: Random, body: bytes, item_type: bytes, configuration_type: bytes) -> bytes:
    """Return the coded image of a file in boxes of our own: alone, or repeated in a grid."""
    configuration = _content(body, configuration_type)
    width, height = struct.unpack_from(">II", _content(body, b"ispe"), 4)
    start = body.index(b"mdat") + 4
    data = body[start:]
    if rng.random() < 0.05:
        data = data * rng.choice((2, 3))
    rows, columns = rng.choice(((0, 0), (0, 0), (1, 1), (2, 3), (16, 16), (1, 255)))
    count = max(1, rows * columns)
    whole = (columns * width, rows * height) if rows else (width, height)
    if rng.random() < 0.1:
        whole = stated_sides(rng)
    if rng.random() < 0.1:
        width, height = stated_sides(rng)
    is_shared = rng.random() < 0.2 or count * len(data) > 4_000_000
    return _file(
        rng, item_type, configuration_type, configuration, data, (width, height), whole,
        (rows, columns), is_shared,
    )  # fmt: skip


def _content(body: bytes, kind: bytes) -> bytes:
    """Return the content of the first box of a type."""
    at = body.index(kind)
    (size,) = struct.unpack_from(">I", body, at - 4)
    return body[at + 4 : at - 4 + size]


def _file(
    rng: Random,
    item_type: bytes,
    configuration_type: bytes,
    configuration: bytes,
    data: bytes,
    tile: tuple[int, int],
    whole: tuple[int, int],
    grid: tuple[int, int],
    is_shared: bool,
) -> bytes:
    rows, columns = grid
    count = max(1, rows * columns)
    properties = _box(rng, b"ispe", struct.pack(">III", 0, *tile))
    properties += _box(rng, configuration_type, configuration)
    properties += _box(rng, b"ispe", struct.pack(">III", 0, *whole))
    properties += _box(rng, b"irot", bytes((rng.randrange(256),)))
    properties += _box(rng, b"imir", bytes((rng.randrange(256),)))
    properties += _box(rng, rng.choice((b"clap", b"a1op", b"pixi")), rng.randbytes(32))
    chosen = [1, 0x82] if not rows else [3]
    chosen += rng.choice(([], [], [], [4], [5], [4, 5], [0x86], [6], [127], [0]))
    associations = struct.pack(">HB", 1, len(chosen)) + bytes(chosen)
    grid_data = bytes((0, 0, max(0, rows - 1), max(0, columns - 1))) + struct.pack(
        ">HH", *(side & 0xFFFF for side in whole)
    )
    types = [b"grid", *[item_type] * count] if rows else [item_type]
    items = b"".join(
        _box(rng, b"infe", struct.pack(">IHH", 2 << 24, number, 0) + kind + b"\0")
        for number, kind in enumerate(types, 1)
    )
    if rows:
        associations += b"".join(
            struct.pack(">HB2s", number, 2, b"\x01\x82") for number in range(2, count + 2)
        )
    contents = [grid_data] * bool(rows) + [data] * (1 if is_shared else count)
    references = b""
    if rows:
        stated = count if rng.random() < 0.95 else rng.choice((0, count - 1))
        numbers = [
            number % (count + 2) if rng.random() < 0.999 else 0 for number in range(2, count + 2)
        ]
        dimg = struct.pack(">HH", 1, stated) + struct.pack(f">{count}H", *numbers)
        references = _box(rng, b"iref", bytes(4) + _box(rng, b"dimg", dimg))

    def meta(data_start: int) -> bytes:
        position = data_start
        locations = struct.pack(">IHH", 0, 0x4400, len(types))
        for number in range(1, len(types) + 1):
            content = contents[min(number - 1, len(contents) - 1)]
            locations += struct.pack(">HHHII", number, 0, 1, position, len(content))
            if number < len(contents):
                position += len(content)
        entries = bytes(4) + struct.pack(">I", len(types)) + associations
        return _box(
            rng,
            b"meta",
            bytes(4)
            + _box(rng, b"hdlr", bytes(8) + b"pict" + bytes(13))
            + _box(rng, b"pitm", bytes(4) + struct.pack(">H", 1))
            + _box(rng, b"iloc", locations)
            + _box(rng, b"iinf", bytes(4) + struct.pack(">H", len(types)) + items)
            + references
            + _box(rng, b"iprp", _box(rng, b"ipco", properties) + _box(rng, b"ipma", entries))
            + _box(rng, b"free", b"") * rng.choice((0, 0, 0, 50, 5000)),
        )

    brand = b"avif" if item_type == b"av01" else b"heic"
    head = _box(rng, b"ftyp", brand + bytes(4) + b"mif1")
    state = rng.getstate()
    size = len(meta(0))
    rng.setstate(state)
    return head + meta(len(head) + size + 8) + _box(rng, b"mdat", b"".join(contents))


def _box(rng: Random, kind: bytes, content: bytes) -> bytes:
    size = 8 + len(content)
    if rng.random() < 0.0005:
        size = rng.choice((0, 1, 7, size + 1, 0xFFFFFFFF))
    return struct.pack(">I", size) + kind + content
