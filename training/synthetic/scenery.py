"""Background, foreground and camera of synthetic images of people."""

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from training.data.sample import FloatArray, Pixels


def paint_room(rng: Generator, width: int, height: int) -> FloatArray:
    """Paint a textured wall and floor with random objects; float32 (H, W, 3), 0...255."""
    canvas: FloatArray = np.empty((height, width, 3), np.float32)
    horizon = int(rng.uniform(0.3, 0.85) * height)
    canvas[:horizon], canvas[horizon:] = _muted_colour(rng, 14.0), _muted_colour(rng, 14.0)
    for _ in range(int(rng.integers(1, 7))):
        _paint_object(rng, canvas, rng.uniform(0, height))
    if rng.random() < 0.5:
        canvas = _blur(canvas, rng.uniform(0.5, 4.0))
    # Coarse and fine noise, so that no surface has a uniform colour.
    for cells in (6, 24, 80):
        shape = (max(2, cells * height // width), cells, 3)
        blotches = rng.normal(0, rng.uniform(1, 7), shape).astype(np.float32)
        canvas += cv2.resize(blotches, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(canvas, 0, 255).astype(np.float32)


def paint_foreground(rng: Generator, canvas: FloatArray) -> NDArray[np.bool_]:
    """Paint up to two foreground objects; return their mask, bool (H, W)."""
    before = canvas.copy()
    for _ in range(int(rng.choice([0, 1, 2], p=[0.7, 0.25, 0.05]))):
        _paint_object(rng, canvas, rng.uniform(0.6, 1.1) * canvas.shape[0])
    return np.asarray((before != canvas).any(axis=2))


def _paint_object(rng: Generator, canvas: FloatArray, y: float) -> None:
    """Paint a box, an ellipse or a pole at row ``y``."""
    x = rng.uniform(0, canvas.shape[1])
    colour = _muted_colour(rng, 28.0).tolist()
    kind = int(rng.integers(3))
    if kind == 0:
        half = np.array([rng.uniform(6, 55), rng.uniform(6, 45)])
        low, high = np.array([x, y]) - half, np.array([x, y]) + half
        cv2.rectangle(canvas, low.astype(int).tolist(), high.astype(int).tolist(), colour, -1)
    elif kind == 1:
        axes = (int(rng.uniform(4, 40)), int(rng.uniform(4, 40)))
        cv2.ellipse(canvas, (int(x), int(y)), axes, rng.uniform(0, 180), 0, 360, colour, -1)
    else:
        end = (int(x + rng.normal(0, 40)), int(y - rng.uniform(30, 200)))
        cv2.line(canvas, (int(x), int(y)), end, colour, int(rng.integers(2, 14)))


def _muted_colour(rng: Generator, colourfulness: float) -> FloatArray:
    """Draw a colour, RGB 0...255, less saturated than those of clothes."""
    colour = rng.uniform(30, 225) + rng.normal(0, colourfulness, 3)
    return np.clip(colour, 5, 250).astype(np.float32)


def simulate_camera(rng: Generator, canvas: FloatArray) -> Pixels:
    """Simulate illumination from one side, focus and sensor noise; uint8 (H, W, 3)."""
    height, width = canvas.shape[:2]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
    slope, brightness = np.float32(rng.normal(0, 0.12)), np.float32(rng.uniform(0.65, 1.15))
    tint = np.exp(rng.normal(0, 0.05, 3)).astype(np.float32)
    image = canvas * (brightness * (1 + slope * x) * tint)
    image = _blur(image, rng.uniform(0.45, 1.0))
    noise = rng.standard_normal((height, width, 3), dtype=np.float32)
    image = image + np.float32(rng.uniform(0.5, 4.0)) * noise
    return np.asarray(np.clip(image + 0.5, 0, 255), np.uint8)


def _blur(image: FloatArray, sigma_px: float) -> FloatArray:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma_px), np.float32)
