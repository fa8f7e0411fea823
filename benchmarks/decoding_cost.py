"""Compare the stated cost of decoding with the measured one, on the worst files of each format.

    python -m benchmarks.decoding_cost [--megapixels 12]

Each file is decoded in a process of its own: CPU time, and peak memory over that before. Exits 1
if a stated cost is lower than the measured one.
"""

import argparse
import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageFile

from evaluation.report import markdown_row, markdown_table
from service.imaging.jpeg_header import scan_limit

_CHILD = """
import json, sys, time
from pathlib import Path
from service.errors import ServiceError
from service.imaging.image_decoding import open_image
def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
body = sys.stdin.buffer.read()
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = memory("VmRSS")
opened_at = time.process_time()
image = open_image(body, 50_000_000)
started_at = time.process_time()
try:
    image.decode()
    outcome = "decoded"
except ServiceError as error:
    outcome = error.code
ended_at = time.process_time()
print(json.dumps([outcome, image.cost.memory_bytes, memory("VmHWM") - before, image.cost.cpu_s,
    ended_at - started_at, started_at - opened_at]))
"""


def measure(body: bytes) -> list[Any]:
    """Return outcome, stated and measured bytes, stated and measured CPU s, CPU s of opening."""
    command = [sys.executable, "-c", _CHILD]
    done = subprocess.run(command, input=body, capture_output=True, check=True)
    result: list[Any] = json.loads(done.stdout)
    return result


def cases(megapixels: float) -> Iterator[tuple[str, bytes]]:
    """Yield names and files: noise for entropy decoding, uniform pixels for small files."""
    width = int((megapixels * 1e6) ** 0.5) // 16 * 16
    height = int(megapixels * 1e6) // width
    for content in ("noise", "uniform"):
        pixels = np.full((height, width, 3), 90, np.uint8)
        if content == "noise":
            pixels = np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint8)
        for name, body in _encoded(Image.fromarray(pixels)):
            yield f"{name}, {content}", body
    yield "WEBP lossless, as many Huffman tables as possible", webp_with_tables(1 << 16)
    for quality in (30, 100):
        body = encode_image(Image.fromarray(_smooth(width, height)), "JPEG", quality=quality)
        yield f"JPEG quality {quality}, smooth", body
        body = encode_image(
            Image.fromarray(_smooth(width, height)), "WEBP", quality=quality, method=0
        )
        yield f"WEBP quality {quality}, smooth", body


def _smooth(width: int, height: int) -> Any:
    small = np.random.default_rng(1).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def _encoded(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    exif = Image.Exif()
    exif[0x0112] = 6
    limit = scan_limit(image.width * image.height)
    rotated: dict[str, Any] = {"exif": exif.tobytes()}
    for subsampling in (0, 2):
        options: dict[str, Any] = {"quality": 75, "subsampling": subsampling}
        baseline = encode_image(image, "JPEG", **options, **rotated)
        yield f"JPEG {subsampling}", baseline
        # Warned of by libjpeg, so decoded twice.
        at = baseline.rindex(b"\xff\xd9")
        yield f"JPEG {subsampling} decoded twice", baseline[:at] + bytes(8) + baseline[at:]
        progressive = encode_image(image, "JPEG", progressive=True, **options, **rotated)
        yield f"JPEG {subsampling} progressive", progressive
        at = progressive.rindex(b"\xff\xd9")
        twice = progressive[:at] + bytes(8) + progressive[at:]
        yield f"JPEG {subsampling} progressive, decoded twice", twice
        yield f"JPEG {subsampling} one of its scans", first_scans(progressive, 1)
        yield f"JPEG {subsampling} repeated scans", repeated_scans(progressive, image, limit)
    cmyk = image.convert("CMYK")
    yield "JPEG CMYK", encode_image(cmyk, "JPEG", quality=75, **rotated)
    yield (
        "JPEG CMYK progressive",
        encode_image(cmyk, "JPEG", progressive=True, quality=75, **rotated),
    )
    for mode in ("RGB", "RGBA", "P", "1", "L", "LA"):
        converted = image.convert(mode)
        yield f"PNG {mode}", encode_image(converted, "PNG", compress_level=1, **rotated)
        if mode in {"RGB", "P", "1", "L"}:
            yield f"BMP {mode}", encode_image(converted, "BMP")
    for interlaced in (0, 1):
        for color_type, samples in ((0, 1), (2, 3), (6, 4)):
            name = f"PNG 16 bits, type {color_type}, interlaced {interlaced}"
            yield name, deep_png(image, color_type, samples, interlaced)
    yield "WEBP", encode_image(image, "WEBP", method=0, **rotated)
    yield (
        "WEBP lossless",
        encode_image(image, "WEBP", lossless=True, method=0, quality=0, **rotated),
    )
    alpha = image.convert("RGBA")
    alpha.putalpha(image.convert("L"))
    options = {"lossless": True, "method": 0, "quality": 0, "exact": True}
    yield "WEBP lossless alpha", encode_image(alpha, "WEBP", **options, **rotated)
    yield from _gif_and_tiff(image, alpha, exif)
    yield from _avif_and_heic(image, exif)


def _gif_and_tiff(
    image: Image.Image, alpha: Image.Image, exif: Image.Exif
) -> Iterator[tuple[str, bytes]]:
    yield "GIF", encode_image(image.convert("L"), "GIF")
    yield "GIF interlaced", encode_image(image.convert("L"), "GIF", interlace=1)
    yield "GIF of empty codes", gif_of_clear_codes(image.width, image.height, 8_000_000)
    modes = [image.convert(mode) for mode in ("1", "L", "P", "RGB", "CMYK")]
    deep = Image.fromarray(np.asarray(image.convert("L")) * np.uint16(257))
    for converted in (*modes, alpha, deep):
        for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
            name = f"TIFF {converted.mode} {compression}"
            options: dict[str, Any] = {"compression": compression, "exif": exif}
            yield name, encode_image(converted, "TIFF", **options)
            if converted.mode in {"RGB", "RGBA"} and compression != "raw":
                options["tiffinfo"] = {278: image.height}
                yield f"{name}, one strip", encode_image(converted, "TIFF", **options)


def _avif_and_heic(image: Image.Image, exif: Image.Exif) -> Iterator[tuple[str, bytes]]:
    for subsampling in ("4:0:0", "4:2:0", "4:4:4"):
        for quality in (30, 100):
            options: dict[str, Any] = {"subsampling": subsampling, "quality": quality, "speed": 10}
            name = f"AVIF {subsampling} quality {quality}"
            yield name, encode_image(image, "AVIF", **options, exif=exif)
    try:
        import pillow_heif
    except ImportError:
        return
    for chroma in (420, 444):
        for quality in (30, 100):
            buffer = io.BytesIO()
            file = pillow_heif.from_pillow(image)
            file.save(buffer, quality=quality, chroma=chroma, enc_params={"preset": "ultrafast"})
            yield f"HEIC {chroma} quality {quality}", buffer.getvalue()


def gif_of_clear_codes(width: int, height: int, data_bytes: int) -> bytes:
    """Return a GIF whose data are codes that clear the table of codes, and no pixel."""
    code = 1 << 8
    eight_codes = sum(code << 9 * index for index in range(8)).to_bytes(9, "little")
    data = eight_codes * (data_bytes // 9)
    blocks = b"".join(
        bytes((len(data[at : at + 255]),)) + data[at : at + 255] for at in range(0, len(data), 255)
    )
    screen = struct.pack("<6sHHBBB", b"GIF89a", width, height, 0, 0, 0)
    frame = struct.pack("<BHHHHB", 0x2C, 0, 0, width, height, 0)
    return screen + frame + b"\x08" + blocks + b"\0;"


def encode_image(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def first_scans(progressive: bytes, count: int) -> bytes:
    """Keep the first scans; with that of the DC coefficients alone, libjpeg smooths the blocks."""
    return b"\xff\xda".join(progressive.split(b"\xff\xda")[: count + 1]) + b"\xff\xd9"


def repeated_scans(progressive: bytes, image: Image.Image, scans: int) -> bytes:
    """Add scans of one component in which runs of empty blocks cover the image, up to ``scans``."""
    table = b"\xff\xc4\x00\x14\x11" + bytes([1] + [0] * 15 + [0xE0])
    blocks = -(-image.width // 8) * -(-image.height // 8)
    bits = ""
    while blocks > 0:
        bits += "0" + format(0b10111110111110, "014b")
        blocks -= 16384 + 0b10111110111110
    bits += "1" * (-len(bits) % 8)
    data = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    # Refinement visits every coefficient, unlike a first scan.
    scan = b"\xff\xda\x00\x08\x01\x01\x01\x01\x3f\x21" + data.replace(b"\xff", b"\xff\x00")
    count = scans - progressive.count(b"\xff\xda")
    return progressive[:-2] + table + scan * count + b"\xff\xd9"


def webp_with_tables(sets: int) -> bytes:
    """Return a lossless WebP of 1024 x 1024 pixels with up to 2^16 sets of Huffman tables."""
    fields: list[tuple[int, int]] = [(0x2F, 8), (1023, 14), (1023, 14), (0, 4)]
    fields += [(0, 1), (0, 1), (1, 1), (0, 3), (0, 1)]  # no transform; a set per 4 x 4 pixels
    # Green and red of the image of set numbers: 256 symbols of 8 bits each.
    lengths = [(0, 1), (8, 4), *[(0, 3)] * 11, (1, 3)]
    fields += [*lengths, (1, 1), (3, 3), (254, 8), *lengths, (0, 1)]
    one_symbol = [(1, 1), (0, 3)]
    fields += one_symbol * 3
    reversed_bits = [int(f"{value:08b}"[::-1], 2) for value in range(256)]
    for block in range(256 * 256):
        number = block % sets
        fields += [(reversed_bits[number & 255], 8), (reversed_bits[number >> 8], 8)]
    return _lossless_webp(fields + one_symbol * (5 * sets))


def uniform_webp(width: int, height: int) -> bytes:
    """Return a lossless WebP of 38 bytes with an alpha channel; all its pixels are equal."""
    # The alpha flag; no transform, color cache or further table sets; five tables of one symbol.
    fields = [(0x2F, 8), (width - 1, 14), (height - 1, 14), (1, 4), (0, 3)]
    # OpenCV does not open files of less than 32 bytes.
    return _lossless_webp([*fields, *[(1, 1), (0, 3)] * 5, (0, 80)])


def _lossless_webp(fields: list[tuple[int, int]]) -> bytes:
    """Return a file of the fields: values and numbers of bits, least significant bit first."""
    bits = "".join(f"{value:0{width}b}"[::-1] for value, width in fields)
    data = np.packbits(np.frombuffer(bits.encode(), np.uint8) - 48, bitorder="little").tobytes()
    data += bytes(len(data) % 2)
    content = b"WEBPVP8L" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(content)) + content


def deep_png(image: Image.Image, color_type: int, samples: int, interlaced: int) -> bytes:
    row_bytes = 2 * samples * image.width
    noise = np.random.default_rng(2).integers(0, 256, (64, row_bytes), np.uint8)
    uniform = image.getpixel((0, 0)) == image.getpixel((1, 0))
    total = (row_bytes + 9 * (1 + samples)) * image.height * 2
    compressor = zlib.compressobj(1)
    data, written = [], 0
    while written < total:
        rows = b"".join(b"\x04" + (bytes(row_bytes) if uniform else row.tobytes()) for row in noise)
        data.append(compressor.compress(rows))
        written += len(rows)
        if not interlaced and written > (row_bytes + 1) * image.height:
            break

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", image.width, image.height, 16, color_type, 0, 0, interlaced)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", b"".join(data) + compressor.flush())
        + chunk(b"IEND", b"")
    )


def main() -> None:
    ImageFile.MAXBLOCK = 1 << 28  # Pillow encodes a progressive JPEG into one block
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megapixels", type=float, default=12)
    parser.add_argument("--formats", nargs="+", default=[""], help="first words of the file names")
    columns = ("outcome", "memory / stated", "CPU / stated", "measured MiB", "CPU s", "open ms")
    print(markdown_table(("file", *columns)))
    failed = False
    args = parser.parse_args()
    for name, body in cases(args.megapixels):
        if not name.startswith(tuple(args.formats)):
            continue
        outcome, stated_bytes, memory, stated_s, cpu_s, open_s = measure(body)
        failed |= memory > stated_bytes or cpu_s > stated_s
        ratios = [f"{memory / stated_bytes:.2f}", f"{cpu_s / stated_s:.2f}"]
        values = [f"{memory / 2**20:.0f}", f"{cpu_s:.2f}", f"{1000 * open_s:.2f}"]
        print(markdown_row([f"{name}, {len(body) // 1024} KiB", outcome, *ratios, *values]))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
