"""CPU time from an encoded JPEG to the network input, and of several decoders.

    python -m benchmarks.image_decoding [photo.jpg ...]

Images of 640 x 480, 1920 x 1080 and 4000 x 3000 pixels are tiled from the photos at full
resolution, or from drawn shapes if no photo is given. Candidates alternate, so that changes of the
machine's speed affect all of them. Prints Markdown tables: each JPEG decoder at each reduction, the
throughput of two threads relative to one, the service's preprocessing to network inputs of
512 x 512 and 256 x 256, and the decoders of the other formats.
"""

import argparse
import io
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from evaluation.report import markdown_row, markdown_table
from service.imaging.geometry import AffineTransform, ImageTransform
from service.imaging.image_decoding import DecodedImage, open_image
from service.imaging.warp import choose_reduction, warp_to_input

SIZES = ((640, 480, 40), (1920, 1080, 15), (4000, 3000, 5))
"""Width, height, rounds."""
OPENCV_FLAGS = {1: 0, 2: 16, 4: 32, 8: 64}
TILE = (640, 420)
FORMATS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "PNG": ("PNG", {}),
    "WebP": ("WEBP", {"quality": 88}),
    "WebP lossless": ("WEBP", {"lossless": True, "method": 0}),
    "BMP": ("BMP", {}),
}


def decode_with_pillow(body: bytes, reduction: int) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(body), formats=("JPEG", "PNG", "WEBP", "BMP")) as image:
        image.draft("RGB", (image.width // reduction, image.height // reduction))
        return np.asarray(image)


def decode_with_opencv(body: bytes, reduction: int) -> NDArray[np.uint8]:
    flags = OPENCV_FLAGS[reduction] | cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return np.asarray(cv2.imdecode(np.frombuffer(body, np.uint8), flags), dtype=np.uint8)


def decode_with_simplejpeg(body: bytes, reduction: int) -> NDArray[np.uint8]:
    height, width, *_ = simplejpeg.decode_jpeg_header(body)
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        body,
        "RGB",
        min_height=-(-height // reduction),
        min_width=-(-width // reduction),
        min_factor=reduction,
    )
    return pixels


def decode_as_served(body: bytes, reduction: int) -> NDArray[np.uint8]:
    return open_image(body, 50_000_000).decode(reduction).pixels


DECODERS: Mapping[str, Callable[[bytes, int], NDArray[np.uint8]]] = {
    "Pillow": decode_with_pillow,
    "OpenCV": decode_with_opencv,
    "simplejpeg": decode_with_simplejpeg,
    "service": decode_as_served,
}


def make_sheet(width: int, height: int, photos: list[Image.Image]) -> Image.Image:
    """Return an image of tiles."""
    sheet = Image.new("RGB", (width, height))
    tiles = [(left, top) for top in range(0, height, TILE[1]) for left in range(0, width, TILE[0])]
    for index, top_left in enumerate(tiles):
        tile = photos[index % len(photos)] if photos else _drawn(index)
        sheet.paste(tile.crop((0, 0, *TILE)), top_left)
    return sheet


def encode_image(image: Image.Image, image_format: str, **options: Any) -> bytes:
    """Return the bytes of the file."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def _drawn(index: int) -> Image.Image:
    rng = np.random.default_rng(index)
    noise = rng.integers(90, 160, (TILE[1], TILE[0], 3), np.uint8)
    image = Image.fromarray(cv2.GaussianBlur(noise, (0, 0), 1.2))
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        (x, y), size = rng.integers(0, TILE), int(rng.integers(5, 80))
        color = tuple(int(value) for value in rng.integers(0, 256, 3))
        draw.ellipse((int(x), int(y), int(x) + size, int(y) + size), fill=color)
    return image


def cpu_milliseconds(candidates: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median CPU time of this thread per candidate; candidates alternate."""
    durations: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, work in candidates.items():
            started_at = time.thread_time()
            work()
            durations[name].append(1000 * (time.thread_time() - started_at))
    return {name: statistics.median(times) for name, times in durations.items()}


def two_thread_speedup(work: Callable[[], Any], rounds: int) -> float:
    """Return the throughput of two threads divided by that of one; at best 2."""

    def run() -> None:
        for _ in range(rounds):
            work()

    def seconds(count: int) -> float:
        threads = [threading.Thread(target=run) for _ in range(count)]
        started_at = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - started_at

    return statistics.median(2 * seconds(1) / seconds(2) for _ in range(5))


def letterbox(width: int, height: int, side: int) -> ImageTransform:
    """Return the transform of an image to a square input."""
    scale = side / max(width, height)
    centers = (width / 2, height / 2), (side / 2, side / 2)
    return ImageTransform(width, height, side, side, AffineTransform.centered(scale, *centers))


def prepare(body: bytes, transform: ImageTransform, scaled: bool) -> NDArray[np.uint8]:
    """Return the network input as the service makes it, with or without scaled decoding."""
    image = open_image(body, 50_000_000)
    return warp_to_input(image.decode(choose_reduction([transform]) if scaled else 1), transform)


def prepare_with_pillow(body: bytes, transform: ImageTransform) -> NDArray[np.uint8]:
    """Return the network input from an image that Pillow decoded at full size."""
    return warp_to_input(DecodedImage(decode_with_pillow(body, 1)), transform)


def print_decoders(bodies: Mapping[tuple[int, int], tuple[bytes, int]]) -> None:
    """Print CPU times of the JPEG decoders; ``bodies``: file and rounds by width and height."""
    speedup_columns = (f"speed-up of 2 threads: {name}" for name in DECODERS)
    print(markdown_table(["decoding, CPU ms", *DECODERS, *speedup_columns]))
    for (width, height), (body, rounds) in bodies.items():
        for reduction in (1, 2, 4):
            work = {name: partial(decode, body, reduction) for name, decode in DECODERS.items()}
            expected = decode_with_pillow(body, reduction)
            assert all(np.array_equal(decode(), expected) for decode in work.values())
            times = [f"{value:.2f}" for value in cpu_milliseconds(work, rounds).values()]
            speedups = [
                f"{two_thread_speedup(decode, max(2, rounds // 4)):.2f}" for decode in work.values()
            ]
            size = f"{width} x {height}, {len(body) // 1024} KiB, 1/{reduction}"
            print(markdown_row([size, *times, *speedups]), flush=True)


def print_preprocessing(bodies: Mapping[tuple[int, int], tuple[bytes, int]]) -> None:
    """Print CPU times to network inputs; ``bodies``: file and rounds by width and height."""
    columns = ("Pillow, full size", "simplejpeg, full size", "scaled", "reduction")
    print(f"\n{markdown_table(['JPEG to network input, CPU ms', *columns])}")
    for (width, height), (body, rounds) in bodies.items():
        for side in (512, 256):
            transform = letterbox(width, height, side)
            work = {
                "pillow": partial(prepare_with_pillow, body, transform),
                "full": partial(prepare, body, transform, False),
                "scaled": partial(prepare, body, transform, True),
            }
            times = [f"{value:.2f}" for value in cpu_milliseconds(work, rounds).values()]
            name, reduction = f"{width} x {height} to {side}", choose_reduction([transform])
            print(markdown_row([name, *times, f"1/{reduction}"]), flush=True)


def print_formats(sheets: Mapping[tuple[int, int], tuple[Image.Image, int]]) -> None:
    """Print CPU times of decoding at full size; ``sheets``: pixels and rounds by size."""
    print(f"\n{markdown_table(['other formats, CPU ms', 'Pillow', 'service'])}")
    for (width, height), (sheet, rounds) in sheets.items():
        for name, (image_format, options) in FORMATS.items():
            body = encode_image(sheet, image_format, **options)
            work = {
                "Pillow": partial(decode_with_pillow, body, 1),
                "service": partial(decode_as_served, body, 1),
            }
            assert np.array_equal(work["Pillow"](), work["service"]())
            times = [f"{value:.2f}" for value in cpu_milliseconds(work, rounds).values()]
            size = f"{name}, {width} x {height}, {len(body) // 1024} KiB"
            print(markdown_row([size, *times]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("photos", type=Path, nargs="*")
    photos = [Image.open(path).convert("RGB") for path in parser.parse_args().photos]
    photos = [photo for photo in photos if photo.width >= TILE[0] and photo.height >= TILE[1]]
    sheets = {(w, h): (make_sheet(w, h, photos), rounds) for w, h, rounds in SIZES}
    # With 4:2:0 chroma subsampling.
    bodies = {
        size: (encode_image(sheet, "JPEG", quality=88), rounds)
        for size, (sheet, rounds) in sheets.items()
    }
    print_decoders(bodies)
    print_preprocessing(bodies)
    print_formats(sheets)


if __name__ == "__main__":
    main()
