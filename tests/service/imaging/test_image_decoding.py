"""Accepted and rejected image files, and the decoded pixels."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.images import encode, plain, png_of_declared_size, png_of_rows, quadrants

from service.errors import (
    BadImageError,
    EmptyBodyError,
    ImageSizeError,
    UnsupportedImageError,
)
from service.imaging.image_decoding import (
    ACCEPTED_FORMATS,
    MAX_SIDE_PX,
    MIN_SIDE_PX,
    open_image,
)
from service.imaging.jpeg_header import scan_limit

LIMIT = 50_000_000


def decode(body: bytes) -> NDArray[np.uint8]:
    """Return the pixels of an encoded image at full size."""
    return open_image(body, LIMIT).decode().pixels


@pytest.mark.parametrize("image_format", ["PNG", "BMP"])
def test_lossless_formats_keep_all_pixels(image_format: str) -> None:
    decoded = decode(encode(quadrants(), image_format))
    assert np.array_equal(decoded, quadrants())
    assert not open_image(encode(quadrants(), image_format), LIMIT).orientation_applied


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP"])
def test_lossy_formats_are_decoded(image_format: str) -> None:
    decoded = decode(encode(plain(180, 90, 40), image_format, quality=95))
    assert np.abs(decoded.astype(int) - (180, 90, 40)).max() <= 4


def test_gray_and_one_bit_images_become_rgb() -> None:
    gray = np.arange(64 * 64, dtype=np.uint32).reshape(64, 64).astype(np.uint8)
    assert np.array_equal(decode(encode(gray)), np.repeat(gray[..., None], 3, axis=2))
    bits = Image.fromarray(gray).convert("1", dither=Image.Dither.NONE)
    expected = np.where(gray >= 128, 255, 0)
    assert np.array_equal(decode(encode(bits))[..., 0], expected)


def test_16_bit_gray_images_keep_their_high_byte() -> None:
    deep = (np.arange(64 * 64, dtype=np.uint32) * 15 % 65536).astype(np.uint16).reshape(64, 64)
    decoded = decode(encode(Image.fromarray(deep)))
    assert np.array_equal(decoded[..., 1], (deep >> 8).astype(np.uint8))


def test_palette_images_become_rgb() -> None:
    palette = Image.fromarray(quadrants()).quantize(4)
    decoded = decode(encode(palette))
    assert np.array_equal(decoded, np.asarray(palette.convert("RGB")))


def test_alpha_is_dropped_and_colors_are_kept() -> None:
    transparent = np.dstack([plain(10, 200, 30), np.zeros((64, 64), np.uint8)])
    assert np.array_equal(decode(encode(transparent)), plain(10, 200, 30))


def test_cmyk_jpegs_are_converted() -> None:
    cmyk = Image.fromarray(plain(200, 100, 50)).convert("CMYK")
    decoded = decode(encode(cmyk, "JPEG", quality=95))
    assert np.abs(decoded.astype(int) - (200, 100, 50)).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    stored = Image.fromarray(quadrants())
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(encode(stored, "PNG", exif=exif.tobytes()), LIMIT)
    transposes = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    transpose = transposes[orientation]
    upright = stored if transpose is None else stored.transpose(transpose)
    assert np.array_equal(opened.decode().pixels, np.asarray(upright))
    assert (opened.height_px, opened.width_px) == upright.size[::-1]
    assert opened.orientation_applied == (orientation != 1)


def test_a_damaged_exif_block_is_ignored() -> None:
    body = encode(plain(9, 9, 9), "JPEG")
    damaged = (
        body[:2] + b"\xff\xe1\x00\x14Exif\x00\x00II*\x00\xff\xff\xff\xff\xff\xff\xff\xff" + body[2:]
    )
    assert decode(damaged).shape == (64, 64, 3)


def test_pillow_warnings_are_not_logged(project: Path) -> None:
    program = """
import sys
from PIL import TiffImagePlugin
from service.imaging.image_decoding import open_image
open_image(sys.stdin.buffer.read(), 50_000_000).decode()
assert set(getattr(TiffImagePlugin, "__warningregistry__", ())) <= {"version"}
"""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x40\0\x12\x01"
    body = encode(plain(9, 9, 9), "JPEG", exif=exif)
    command = [sys.executable, "-W", "always", "-c", program]
    done = subprocess.run(command, input=body, capture_output=True, cwd=project, check=True)
    assert done.stderr == b""


def test_mpo_decodes_the_main_image() -> None:
    body = io.BytesIO()
    first, second = Image.fromarray(plain(200, 0)), Image.fromarray(plain(0, 200))
    first.save(body, "MPO", save_all=True, append_images=[second], quality=95)
    decoded = decode(body.getvalue())
    assert np.abs(decoded.astype(int) - (200, 0, 0)).max() <= 4


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_animated_images_are_rejected(image_format: str) -> None:
    frames = [Image.fromarray(plain(value, 0)) for value in (0, 100, 200)]
    body = encode(frames[0], image_format, save_all=True, append_images=frames[1:])
    with pytest.raises(UnsupportedImageError, match=r"animated.*each frame"):
        decode(body)


@pytest.mark.parametrize("image_format", ["JPEG2000", "ICO", "PPM"])
def test_rejecting_other_formats_names_the_supported_ones(image_format: str) -> None:
    with pytest.raises(UnsupportedImageError, match=f"Send one {ACCEPTED_FORMATS} file"):
        decode(encode(plain(1, 2, 3), image_format))


@pytest.mark.parametrize("body", [b"hello", b"<!doctype html><html></html>", bytes(1000)])
def test_rejecting_other_data_quotes_the_first_bytes(body: bytes) -> None:
    with pytest.raises(UnsupportedImageError) as caught:
        decode(body)
    assert repr(body[:12]) in caught.value.detail


def test_empty_bodies_are_rejected() -> None:
    with pytest.raises(EmptyBodyError, match="0 bytes"):
        decode(b"")


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP"])
def test_truncated_images_are_rejected(image_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    body = encode(noise, image_format)
    with pytest.raises((BadImageError, UnsupportedImageError)) as caught:
        decode(body[: len(body) // 2])
    assert "whole file" in caught.value.detail or "Send one" in caught.value.detail


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (20_000, 20_000, "20000 x 20000 pixels; a side may have at most"),
        (9_000, 9_000, "9000 x 9000 pixels, 81000000 in total"),
        (30_000, 10, "30000 x 10 pixels; each side must have at least"),
        (1, 1, "1 x 1 pixels; each side must have at least"),
        (MAX_SIDE_PX + 1, MIN_SIDE_PX, "a side may have at most"),
    ],
)
def test_sizes_out_of_range_are_rejected_from_the_header(
    width: int, height: int, reason: str
) -> None:
    with pytest.raises(ImageSizeError, match=reason):
        decode(png_of_declared_size(width, height))


def test_the_smallest_and_the_longest_images_are_accepted() -> None:
    for width, height in [(MIN_SIDE_PX, MIN_SIDE_PX), (MAX_SIDE_PX, MIN_SIDE_PX)]:
        decoded = decode(png_of_declared_size(width, height))
        assert decoded.shape == (height, width, 3)


def progressive_with_scans(extra: int, side: int = 1000) -> bytes:
    """Return a progressive JPEG with ``extra`` copies of its first scan."""
    body = encode(plain(1, 2, 3, (side, side)), "JPEG", progressive=True)
    start = body.index(b"\xff\xda")
    scan = body[start : body.index(b"\xff", start + 14)]
    return body[:start] + scan * extra + body[start:]


def test_a_jpeg_with_repeated_scans_is_rejected() -> None:
    assert decode(progressive_with_scans(0)).shape == (1000, 1000, 3)
    limit = scan_limit(1000**2)
    with pytest.raises(UnsupportedImageError, match=f"more than the {limit} scans"):
        decode(progressive_with_scans(limit))


def test_data_after_the_end_of_a_jpeg_are_ignored() -> None:
    """Phones append a short video to their photos."""
    video = b"\xff\xda" * 10_000
    decoded = decode(encode(plain(9, 9, 9, (600, 600)), "JPEG") + video)
    assert decoded.shape == (600, 600, 3)


def test_a_png_damaged_in_the_middle_is_rejected() -> None:
    """A partly decoded image would give wrong boxes without an error."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    body = bytearray(encode(noise))
    for position in (len(body) // 3, len(body) // 2):
        damaged = body.copy()
        damaged[position] ^= 0xFF
        with pytest.raises(BadImageError, match="damaged"):
            decode(bytes(damaged))


ROW = b"\0" + bytes(range(1, 21))
# Adam7's seven passes over 20 x 17 pixels: columns and rows of each.
PASSES = ((3, 3), (2, 3), (5, 2), (5, 5), (10, 4), (10, 9), (20, 8))


@pytest.mark.parametrize("missing", [0, 1, 16])
def test_a_png_that_ends_between_two_rows_is_rejected(missing: int) -> None:
    """Its compressed stream is valid, but has too few rows."""
    body = png_of_rows(20, 17, [ROW] * (17 - missing), depth=8)
    if missing:
        with pytest.raises(BadImageError, match="incomplete"):
            decode(body)
    else:
        assert np.array_equal(decode(body)[:, :, 0], np.tile(np.arange(1, 21), (17, 1)))


@pytest.mark.parametrize("missing", [0, 1, 9])
def test_an_interlaced_png_that_ends_between_two_rows_is_rejected(missing: int) -> None:
    rows = [b"\0" + b"\x80" * columns for columns, count in PASSES for _ in range(count)]
    body = png_of_rows(20, 17, rows[: len(rows) - missing], depth=8, interlaced=True)
    if missing:
        with pytest.raises(BadImageError, match="incomplete"):
            decode(body)
    else:
        assert (decode(body) == 0x80).all()


def test_a_png_with_a_black_last_row_is_complete() -> None:
    pixels = quadrants()
    pixels[-3:] = 0
    assert np.array_equal(decode(encode(pixels)), pixels)
