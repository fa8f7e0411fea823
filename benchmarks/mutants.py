"""Mutation-based fuzzing of image files, reproducible by seed."""

import io
import struct
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

# Values written into header fields: 0, 1 and the limits of 8, 16, 31 and 32 bits.
_LIMITS = (0, 1, 0x7F, 0xFF, 0x100, 0x4000, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)
_HEADER_BYTES = 200

_Mutation = Callable[[np.random.Generator, bytes, bytes], bytes]


def originals() -> list[bytes]:
    """Return small files of every format and mode that the service decodes."""
    rng = np.random.default_rng(1)
    pixels = np.zeros((50, 67, 3), np.uint8)
    pixels[8:40, 10:50] = (200, 60, 20)
    pixels[20:, 30:] = rng.integers(0, 256, (30, 37, 3))
    color = Image.fromarray(pixels)
    grey = color.convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = exif.tobytes()
    grey_16_bit = Image.fromarray(np.asarray(grey, np.uint16) * 257)
    return [
        *(_saved(color, "JPEG", subsampling=kind) for kind in (0, 1, 2)),
        _saved(color, "JPEG", progressive=True, exif=rotated),
        _saved(color, "JPEG", restart_marker_blocks=3),
        _saved(grey, "JPEG"),
        _saved(color.convert("CMYK"), "JPEG"),
        _saved(color, "MPO", save_all=True, append_images=[color]),
        *(_saved(image, "PNG") for image in (color, grey, color.quantize(16), grey_16_bit)),
        *(_saved(color.convert(mode), "PNG") for mode in ("1", "LA", "RGBA")),
        _saved(color, "PNG", exif=rotated),
        _saved(color, "WEBP"),
        _saved(color.convert("RGBA"), "WEBP", lossless=True, exif=rotated),
        *(_saved(image, "BMP") for image in (color, grey, color.convert("1"))),
    ]


def mutants(seed: int, files: list[bytes]) -> Iterator[bytes]:
    """Yield mutants of ``files`` in turn, endlessly, each with one to four mutations."""
    rng = np.random.default_rng(seed)
    while True:
        for file in files:
            body = file
            for mutation in rng.choice(len(_MUTATIONS), rng.choice((1, 1, 1, 2, 3, 4))):
                if body:
                    body = _MUTATIONS[mutation](rng, body, files[rng.integers(len(files))])
            yield body


def _saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def _flip_bits(rng: np.random.Generator, body: bytes, _: bytes) -> bytes:
    changed = bytearray(body)
    for position in rng.integers(0, len(body), rng.integers(1, 9)):
        changed[position] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _overwrite(rng: np.random.Generator, body: bytes, _: bytes) -> bytes:
    changed = bytearray(body)
    start = int(rng.integers(len(body)))
    run = body[start : start + int(rng.integers(1, 40))]
    changed[start : start + len(run)] = rng.choice((b"\0", b"\xff")) * len(run)
    return bytes(changed)


def _truncate(rng: np.random.Generator, body: bytes, _: bytes) -> bytes:
    return body[: int(rng.integers(len(body)))]


def _cut_out(rng: np.random.Generator, body: bytes, _: bytes) -> bytes:
    start = int(rng.integers(len(body)))
    return body[:start] + body[start + int(rng.integers(1, 200)) :]


def _repeat(rng: np.random.Generator, body: bytes, _: bytes) -> bytes:
    """Repeat a part once or many times, so that chunks, segments and scans are duplicated."""
    start = int(rng.integers(len(body)))
    part = body[start : start + int(rng.integers(1, 400))]
    return body[:start] + part * int(rng.choice((2, 3, 50))) + body[start + len(part) :]


def _splice(rng: np.random.Generator, body: bytes, other: bytes) -> bytes:
    return body[: int(rng.integers(len(body)))] + other[int(rng.integers(len(other))) :]


def _insert(rng: np.random.Generator, body: bytes, other: bytes) -> bytes:
    position, start = int(rng.integers(len(body))), int(rng.integers(len(other)))
    return body[:position] + other[start : start + int(rng.integers(1, 300))] + body[position:]


def _replace_header_field(rng: np.random.Generator, body: bytes, _: bytes) -> bytes:
    """Replace a number in the header (a size, a length, a count), in either byte order."""
    width = int(rng.choice((1, 2, 4)))
    value = int(_LIMITS[rng.integers(len(_LIMITS))]) % (1 << 8 * width)
    number = value.to_bytes(width, "big" if rng.integers(2) else "little")
    position = int(rng.integers(min(_HEADER_BYTES, len(body))))
    return body[:position] + number + body[position + width :]


def _replace_image_size(rng: np.random.Generator, body: bytes, _: bytes) -> bytes:
    """Replace only the width or the height, at the position that the format defines."""
    side = int(rng.choice((0, 1, 15, 16, 49, 51, 100, 700, 16_384, 16_385, 65_535)))
    if body.startswith(b"\x89PNG"):
        position, number = int(rng.choice((16, 20))), struct.pack(">I", side)
    elif body.startswith(b"BM"):
        position, number = int(rng.choice((18, 22))), struct.pack("<i", side)
    else:
        frame = max(body.find(b"\xff\xc0"), body.find(b"\xff\xc2"))
        position, number = frame + int(rng.choice((5, 7))), struct.pack(">H", side)
    return body[:position] + number + body[position + len(number) :]


_MUTATIONS: tuple[_Mutation, ...] = (
    *(_flip_bits, _overwrite, _truncate, _cut_out, _repeat),
    *(_splice, _insert, _replace_header_field, _replace_image_size),
)
