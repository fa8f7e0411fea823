"""Hostile image files: refused from the header, or decoded within the stated cost."""

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.images import encode, plain, quadrants

from benchmarks.decoding_cost import webp_with_tables
from service.errors import BadImageError, ImageSizeError, ServiceError, UnsupportedImageError
from service.imaging import jpeg_header, png_header, webp_header
from service.imaging.decoding_cost import decoding_cost
from service.imaging.exif import orientation_from_exif
from service.imaging.image_decoding import OpenedImage, open_image
from service.imaging.image_header import MAX_PARTS, ImageHeader
from service.imaging.jpeg_header import MAX_SEGMENTS, scan_limit

LIMIT = 50_000_000
EMPTY_COMMENT = b"\xff\xfe\x00\x02"


def opened(body: bytes) -> OpenedImage:
    return open_image(body, LIMIT)


def bmp_with_run_lengths(width: int, height: int, data: bytes) -> bytes:
    palette = b"".join(bytes((value, value, value, 0)) for value in range(256))
    start = 14 + 40 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 2835, 2835, 256, 256)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + info + palette + data


def hidden_scans(count: int, side: int = 1000) -> bytes:
    """Return a progressive JPEG with ``count`` more scans in what a TEM marker seems to skip."""
    body = encode(plain(1, 2, 3, (side, side)), "JPEG", progressive=True)
    start = body.index(b"\xff\xda")
    scan = body[start : body.index(b"\xff", start + 14)]
    return body[:-2] + b"\xff\x01" + scan * count + b"\xff\xd9"


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_png_chunks(chunks: bytes) -> bytes:
    body = encode(quadrants())
    return body[:33] + chunks + body[33:]


def webp_with_chunks(chunks: bytes) -> bytes:
    data = encode(quadrants(), "WEBP")[12:]
    canvas = b"VP8X\x0a\0\0\0" + bytes(4) + (95).to_bytes(3, "little") + (63).to_bytes(3, "little")
    content = b"WEBP" + canvas + data + chunks
    return b"RIFF" + struct.pack("<I", len(content)) + content


def test_scans_that_a_marker_without_length_hides_are_counted() -> None:
    body = encode(plain(1, 2, 3, (1000, 1000)), "JPEG", progressive=True)
    scan = b"\xff\xda\0\x08\x01\x01\0\x01\x3f\0\0"
    for count in (scan_limit(1000**2), 2000):
        with pytest.raises(UnsupportedImageError, match="scans that are accepted"):
            opened(body[:-2] + b"\xff\x01" + scan * count + b"\xff\xd9")


def test_the_decoder_gets_no_data_after_the_counted_ones() -> None:
    """Scans after the end of the image, at either alignment, are neither counted nor decoded."""
    body = encode(quadrants(), "JPEG", progressive=True)
    extended = body + hidden_scans(500, 64)[2:]
    assert opened(b"\xff\xd8\xff\xfe\0\x03x" + extended[2:])._header.scans == 10
    assert opened(extended)._header.scans == 10
    assert opened(extended).cost.cpu_s - opened(body).cost.cpu_s < 0.01
    assert np.array_equal(opened(extended).decode().pixels, opened(body).decode().pixels)


def test_a_scan_count_is_exact_for_ordinary_progressive_files() -> None:
    """Thumbnails in EXIF, color profiles and further images are not counted."""
    thumbnail = encode(plain(1, 2, 3), "JPEG", progressive=True)
    exif = b"Exif\0\0II*\0\x08\0\0\0\0\0" + thumbnail
    for options in ({}, {"exif": exif}, {"icc_profile": b"\xff\xda" * 1000}):
        body = encode(quadrants(), "JPEG", progressive=True, **options)
        assert opened(body)._header.scans == 10


@pytest.mark.parametrize("compression", [1, 2, 4, 5])
def test_compressed_bmps_are_refused(compression: int) -> None:
    body = bytearray(bmp_with_run_lengths(1000, 1000, b"\x01\x07\0\0" * 1000))
    struct.pack_into("<I", body, 30, compression)
    with pytest.raises(UnsupportedImageError, match="only uncompressed BMPs"):
        opened(bytes(body))


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"\xff\xd8" + EMPTY_COMMENT * (MAX_SEGMENTS + 1) + b"\xff\xd9", "JPEG segments"),
        (with_png_chunks(png_chunk(b"tEXt") * MAX_PARTS), "PNG chunks"),
        (with_png_chunks(png_chunk(b"IDAT") * MAX_PARTS), "PNG chunks"),
        (webp_with_chunks(b"junk\0\0\0\0" * MAX_PARTS), "WebP chunks"),
    ],
)
def test_files_of_too_many_parts_are_refused(body: bytes, name: str) -> None:
    with pytest.raises(UnsupportedImageError, match=rf"more than the \d+ {name}"):
        opened(body)


def test_only_the_first_exif_block_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []

    def search(block: bytes) -> int:
        searched.append(block)
        return 1

    for module in (jpeg_header, png_header, webp_header):
        monkeypatch.setattr(module, "orientation_from_exif", search)
    block = b"II*\0\x08\0\0\0\xff\xff" + b"\1\0\4\0\0\0\0\0\0\0\0\0" * 600
    segment = b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block
    body = encode(quadrants(), "JPEG")
    opened(body[:2] + segment * 100 + body[2:])
    opened(with_png_chunks(png_chunk(b"eXIf", block) * 100))
    opened(webp_with_chunks((b"EXIF" + struct.pack("<I", len(block)) + block) * 100))
    assert len(searched) == 3


def test_a_directory_of_many_exif_fields_is_not_searched_to_its_end() -> None:
    field, orientation = b"\1\0\4\0\0\0\0\0\0\0\0\0", struct.pack("<HHII", 0x0112, 3, 1, 6)
    start = b"II*\0\x08\0\0\0\xff\xff"
    assert orientation_from_exif(start + field * 100 + orientation) == 6
    assert orientation_from_exif(start + field * 5000 + orientation) == 1


def test_fill_bytes_between_segments_are_bounded() -> None:
    body = encode(quadrants(), "JPEG")
    assert opened(body[:2] + b"\xff" * 100 + body[2:]).width_px == 96
    with pytest.raises(BadImageError):
        opened(body[:2] + (b"\xff" * 1000 + EMPTY_COMMENT) * 5 + body[2:])


def test_a_png_chunk_that_states_more_bytes_than_the_file_has_is_rejected() -> None:
    body = encode(quadrants())
    longer = body.replace(body[33:41], struct.pack(">I", 1 << 26) + b"IDAT")
    with pytest.raises(BadImageError, match="a chunk extends beyond its end"):
        opened(longer)


@pytest.mark.parametrize("position_and_value", [(24, 3), (25, 1), (26, 1), (27, 1), (28, 2)])
def test_a_png_header_with_values_of_no_version_is_rejected(
    position_and_value: tuple[int, int],
) -> None:
    position, value = position_and_value
    body = bytearray(encode(quadrants()))
    body[position] = value
    with pytest.raises(BadImageError, match="which no version of PNG has"):
        opened(bytes(body))


def test_only_the_first_palette_of_a_png_reaches_the_decoder(
    capfd: pytest.CaptureFixture[str],
) -> None:
    palette = png_chunk(b"PLTE", bytes(range(48)))
    for image in (quadrants(), Image.fromarray(quadrants()).quantize(16)):
        body = encode(image)
        expected = opened(body).decode().pixels
        end = body.index(b"IDAT") - 4
        changed = body[:end] + palette * 3000 + body[end:]
        np.testing.assert_array_equal(opened(changed).decode().pixels, expected)
    assert capfd.readouterr().err.count("\n") <= 2  # libpng writes to stderr


def test_compressed_text_and_profiles_are_not_expanded() -> None:
    """Sixty texts of 1 MB each in 60 kB of file."""
    text = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000)))
    image = opened(with_png_chunks(text * 60))
    assert len(image._header.data) < 2_000
    assert np.array_equal(image.decode().pixels, quadrants())


@pytest.mark.parametrize("kind", [0xC3, 0xC9, 0xCA])
def test_lossless_and_arithmetic_jpegs_are_refused(kind: int) -> None:
    body = encode(quadrants(), "JPEG").replace(b"\xff\xc0", bytes([0xFF, kind]))
    with pytest.raises(UnsupportedImageError, match=f"SOF{kind - 0xC0} with 8 bits"):
        opened(body)


def test_jpegs_of_12_bits_are_refused() -> None:
    body = encode(quadrants(), "JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c")
    with pytest.raises(UnsupportedImageError, match="12 bits per sample"):
        opened(body)


def test_a_jpeg_whose_height_follows_the_scan_is_refused() -> None:
    body = bytearray(encode(quadrants(), "JPEG"))
    start = body.index(b"\xff\xc0")
    body[start + 5 : start + 7] = bytes(2)
    with pytest.raises(ImageSizeError, match="96 x 0 pixels"):
        opened(bytes(body))


def test_a_jpeg_with_two_frames_is_refused() -> None:
    body = encode(quadrants(), "JPEG")
    start = body.index(b"\xff\xc0")
    with pytest.raises(BadImageError, match="two frames"):
        opened(body[:start] + body[start : start + 19] + body[start:])


def test_a_webp_with_another_canvas_size_is_refused() -> None:
    body = bytearray(webp_with_chunks(b""))
    body[24] = 200
    with pytest.raises(BadImageError, match="canvas has another size"):
        opened(bytes(body))


def test_opening_does_not_decode() -> None:
    """Half of the data suffices in formats that do not state their length in advance."""
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    for image_format in ("JPEG", "BMP"):
        body = encode(noise, image_format)
        image = opened(body[: len(body) // 2])
        assert (image.width_px, image.height_px) == (80, 80)
        with pytest.raises(BadImageError):
            image.decode()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_the_orientation_is_what_pillow_reads(image_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    exif[0x0112] = orientation
    body = encode(quadrants(), image_format, exif=exif.tobytes())
    assert Image.open(io.BytesIO(body)).getexif()[0x0112] == orientation
    assert opened(body)._header.orientation == orientation


def test_the_worst_accepted_image_needs_less_than_a_gibibyte() -> None:
    worst: dict[str, Any] = {"width_px": 7071, "height_px": 7071, "orientation": 6, "parts": (b"",)}
    headers = [
        ImageHeader("JPEG", channels=4, scans=12, coefficient_bytes=8 * LIMIT, **worst),
        ImageHeader("WEBP", is_lossless_webp=True, **worst),
        ImageHeader("PNG", **worst),
        ImageHeader("BMP", **worst),
        ImageHeader("GIF", **worst),
        ImageHeader("TIFF", buffer_bytes=8 * LIMIT, **worst),
        # Larger ones need a larger max_decoding_bytes.
        ImageHeader("AVIF", **worst | {"width_px": 6000}),
        ImageHeader("HEIC", **worst | {"width_px": 6000}),
    ]
    costs = [decoding_cost(header, 16 << 20) for header in headers]
    assert max(cost.memory_bytes for cost in costs) < 1 << 30
    assert max(cost.cpu_s for cost in costs) < 10


MEASURE = """
import json, sys, time
from pathlib import Path
from service.errors import ServiceError
from service.imaging.image_decoding import open_image
def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
body = sys.stdin.buffer.read()
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
started_at = time.process_time()
image = open_image(body, 50_000_000)
image.decode()
cpu_s = time.process_time() - started_at
print(json.dumps([memory("VmHWM") - before, cpu_s, image.cost.memory_bytes, image.cost.cpu_s]))
"""


def worst_files() -> dict[str, Callable[[], bytes]]:
    size = (2000, 2000)
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8)
    tiled = np.tile(noise, (4, 4, 1))

    def damaged(**options: Any) -> bytes:
        body = encode(plain(1, 2, 3, size), "JPEG", **options)
        return body[:-2] + bytes(8) + body[-2:]

    return {
        "webp": lambda: encode(Image.new("RGBA", size), "WEBP", lossless=True, quality=0),
        "webp of many huffman tables": lambda: webp_with_tables(1 << 16),
        "lossy webp": lambda: encode(tiled, "WEBP", method=0),
        "png": lambda: encode(Image.fromarray(tiled).convert("RGBA"), compress_level=1),
        "bmp": lambda: encode(tiled, "BMP"),
        "gif": lambda: encode(Image.fromarray(tiled).convert("L"), "GIF"),
        "tiff": lambda: encode(tiled, "TIFF", compression="tiff_lzw"),
        "tiff of one strip": lambda: encode(
            Image.fromarray(tiled).convert("RGBA"),
            "TIFF",
            compression="tiff_adobe_deflate",
            tiffinfo={278: 2000},
        ),
        "avif": lambda: encode(tiled, "AVIF", quality=100, subsampling="4:4:4", speed=10),
        "one bit bmp": lambda: encode(Image.new("1", size), "BMP"),
        "jpeg decoded twice": lambda: damaged(subsampling=0),
        "progressive jpeg decoded twice": lambda: damaged(subsampling=0, progressive=True),
        "scans": lambda: hidden_scans(80, 2000),
    }


@pytest.mark.skipif(sys.platform != "linux", reason="resets the peak of memory through /proc")
@pytest.mark.parametrize("name", worst_files())
def test_decoding_costs_no_more_than_stated(name: str, project: Path) -> None:
    """CPU time of the process, with a second for other work on the machine."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE],
        input=worst_files()[name](),
        capture_output=True,
        cwd=project,
        check=True,
    )
    memory, cpu_s, stated_memory, stated_s = json.loads(done.stdout)
    assert memory <= stated_memory
    assert cpu_s <= stated_s + 1


@pytest.mark.parametrize("colors", [257, 1 << 31])
def test_palettes_are_bounded(colors: int) -> None:
    body = bytearray(encode(Image.fromarray(quadrants()).quantize(4), "BMP"))
    struct.pack_into("<I", body, 46, colors)
    with pytest.raises(ServiceError, match="palette"):
        opened(bytes(body))
