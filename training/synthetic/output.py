"""What the commands of all renderers have in common: their options and the images they write."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import cv2

from training.data.sample import Pixels

JPEG_QUALITY = 90


def read_options(
    module: str,
    description: str | None,
    arguments: Sequence[str] | None,
    default_format: Literal["jpg", "png"],
) -> argparse.Namespace:
    """``output``, ``count``, ``seed`` and ``format`` of ``python -m module``."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--format", choices=("jpg", "png"), default=default_format)
    return parser.parse_args(arguments)


def write_image(path: Path, pixels: Pixels) -> None:
    """Write RGB ``pixels`` in the format of the suffix. Raises ``OSError``."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if path.suffix == ".jpg" else []
    if not cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), settings):
        raise OSError(f"could not write {path}")
