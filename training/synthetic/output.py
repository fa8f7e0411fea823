"""Command-line arguments and image files of the renderers."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import cv2

from training.data.sample import Pixels

JPEG_QUALITY = 90


def parse_args(
    module: str,
    description: str | None,
    argv: Sequence[str] | None,
    default_format: Literal["jpg", "png"],
) -> argparse.Namespace:
    """Parse ``output``, ``count``, ``seed`` and ``format`` of ``python -m module``."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--format", choices=("jpg", "png"), default=default_format)
    return parser.parse_args(argv)


def write_image(path: Path, pixels: Pixels) -> None:
    """Write RGB ``pixels`` in the format of the file suffix. Raises ``OSError``."""
    params = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if path.suffix == ".jpg" else []
    if not cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), params):
        raise OSError(f"could not write {path}")
