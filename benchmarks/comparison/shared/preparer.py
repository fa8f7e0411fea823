"""Preprocessing of the third-party servers, with Pillow and OpenCV."""

import io
import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

cv2.setNumThreads(1)


class Prepared(NamedTuple):
    """A network input.

    ``pixels`` is uint8 (height, width, 3); ``scale`` and shift map image to input coordinates.
    """

    pixels: np.ndarray
    scale: float
    shift_x: float
    shift_y: float


class Preparer:
    """Preprocessing: encoded images to network inputs."""

    def __init__(self, model: Path) -> None:
        manifest = json.loads((model / "model.json").read_text())
        self.width = manifest["input"]["width_px"]
        self.height = manifest["input"]["height_px"]

    def prepare(self, body: bytes) -> Prepared:
        """Decode and warp one image."""
        return self.warp(Image.open(io.BytesIO(body)))

    def warp(self, image: Image.Image) -> Prepared:
        """Decode and warp an opened image."""
        pixels = np.asarray(image.convert("RGB"))
        height, width = pixels.shape[:2]
        scale = self.width / max(width, height)
        shift_x, shift_y = self.width / 2 - scale * width / 2, self.height / 2 - scale * height / 2
        matrix = np.array([[scale, 0, shift_x], [0, scale, shift_y]])
        canvas = cv2.warpAffine(pixels, matrix, (self.width, self.height), flags=cv2.INTER_LINEAR)
        return Prepared(canvas, scale, shift_x, shift_y)
