"""Patches of single cells for synthetic blood smears.

Stained cells absorb light, so a patch holds the optical density ``ln(background / transmitted)``
per colour channel. Densities of overlapping cells add up.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from training.data.sample import FloatArray

# Densities of the Wright-Giemsa stain per RGB channel, estimated by eye.
_HAEMOGLOBIN = np.array([0.11, 0.38, 0.35], np.float32)
_NUCLEUS = np.array([0.85, 1.20, 0.12], np.float32)
_PALE_CYTOPLASM = np.array([0.14, 0.32, 0.06], np.float32)
_PINK_CYTOPLASM = np.array([0.10, 0.46, 0.22], np.float32)
_PLATELET = np.array([0.36, 0.50, 0.10], np.float32)


@dataclass(frozen=True)
class CellPatch:
    """One cell.

    Attributes:
        density: float32 (n, n, 3), optical density per RGB channel.
        coverage: float32 (n, n) in 0...1; pixels of the cell have at least 0.5.
        opacity: share of the layers below that the cell hides, 0...1.
    """

    density: FloatArray
    coverage: FloatArray
    opacity: float


def paint_red_cell(rng: Generator, radius: float) -> CellPatch:
    """Paint a red cell: a pink ellipse with a soft pale center and a slightly darker rim."""
    elongation = 1.0 + abs(rng.normal(0.0, 0.13))
    rho = _outline(rng, radius, min(elongation, 1.6), rng.uniform(0.0, 0.035))
    coverage = _coverage(rho, radius, rng.uniform(1.5, 4.0))
    pallor = rng.choice([rng.uniform(0.0, 0.2), rng.uniform(0.25, 0.8)], p=[0.35, 0.65])
    pale_width = rng.uniform(0.35, 0.6)
    thickness = 1.0 - pallor * np.exp(-((rho / pale_width) ** 4))
    thickness += rng.uniform(0.0, 0.5) * np.exp(-(((rho - 0.93) / 0.06) ** 2))
    thickness *= 1.0 + 0.12 * (_grain(rng, rho.shape[0], 24) - 0.5)
    strength = rng.uniform(0.65, 1.25)
    density = (strength * coverage * thickness)[..., None] * _HAEMOGLOBIN
    return CellPatch(density.astype(np.float32), coverage, opacity=rng.uniform(0.0, 0.5))


def paint_white_cell(rng: Generator, radius: float) -> CellPatch:
    """Paint a white cell: grainy pale cytoplasm around a purple nucleus of one to five lobes."""
    rho = _outline(rng, radius, rng.uniform(1.0, 1.25), rng.uniform(0.01, 0.05))
    coverage = _coverage(rho, radius, rng.uniform(2.0, 6.0))
    side = rho.shape[0]
    pinkness = rng.uniform(0.0, 1.0) ** 2
    granularity = rng.uniform(0.2, 1.2)
    grain = 1.0 + granularity * (_grain(rng, side, rng.uniform(4, 9)) - 0.5)
    cytoplasm = (1.0 - pinkness) * _PALE_CYTOPLASM + pinkness * _PINK_CYTOPLASM
    cytoplasm = cytoplasm * np.float32(rng.uniform(0.7, 1.6))
    nucleus = _nucleus(rng, side, radius) * coverage
    chromatin = 0.85 + 0.35 * _grain(rng, side, rng.uniform(8, 20))
    density = (coverage * grain * (1.0 - nucleus))[..., None] * cytoplasm
    density += (nucleus * chromatin * rng.uniform(0.7, 1.2))[..., None] * _NUCLEUS
    return CellPatch(density.astype(np.float32), coverage, opacity=0.85)


def paint_platelet(rng: Generator, radius: float) -> CellPatch:
    """Paint a platelet: a small irregular purple body with dark granules and a faint fringe."""
    rho = _outline(rng, radius, rng.uniform(1.0, 1.5), rng.uniform(0.02, 0.1))
    coverage = _coverage(rho, radius, rng.uniform(2.0, 5.0))
    body = 0.35 + 0.65 * np.exp(-((rho / rng.uniform(0.5, 1.0)) ** 2))
    grain = 0.5 + _grain(rng, rho.shape[0], rng.uniform(3, 7))
    strength = rng.uniform(0.55, 1.5)
    density = (strength * coverage * body * grain)[..., None] * _PLATELET
    return CellPatch(density.astype(np.float32), coverage, opacity=0.6)


def _outline(rng: Generator, radius: float, elongation: float, irregularity: float) -> FloatArray:
    """Return the distance from the center relative to the outline, float32 (n, n)."""
    long_axis, short_axis = radius * np.sqrt(elongation), radius / np.sqrt(elongation)
    half = int(np.ceil(long_axis * (1.0 + 4.0 * irregularity))) + 5
    steps = np.arange(-half, half + 1, dtype=np.float32)
    x = steps[None, :] - np.float32(rng.uniform(-0.5, 0.5))
    y = steps[:, None] - np.float32(rng.uniform(-0.5, 0.5))
    turn = rng.uniform(0.0, np.pi)
    u = (x * np.cos(turn) + y * np.sin(turn)) / long_axis
    v = (y * np.cos(turn) - x * np.sin(turn)) / short_axis
    rho, theta = cv2.cartToPolar(u.astype(np.float32), v.astype(np.float32))
    wobble = np.ones_like(rho)
    for harmonic in range(2, 6):
        amplitude = rng.normal(0.0, irregularity)
        wobble += np.float32(amplitude) * np.cos(harmonic * theta + rng.uniform(0.0, 2.0 * np.pi))
    return np.asarray(rho / np.maximum(wobble, 0.5), np.float32)


def _coverage(rho: FloatArray, radius: float, edge_px: float) -> FloatArray:
    """Return 1 inside, 0 outside, and a ramp of ``edge_px`` pixels centered on the outline."""
    return np.asarray(np.clip((1.0 - rho) * (radius / edge_px) + 0.5, 0.0, 1.0), np.float32)


def _grain(rng: Generator, side: int, grain_px: float) -> FloatArray:
    """Return smooth noise in 0...1, float32 (side, side), of about ``grain_px`` pixels."""
    cells = max(2, int(side / grain_px))
    coarse = rng.random((cells, cells), dtype=np.float32)
    return np.asarray(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_LINEAR), np.float32)


def _nucleus(rng: Generator, side: int, radius: float) -> FloatArray:
    """Return the coverage of the nucleus of a white cell, float32 (side, side)."""
    lobes = int(rng.choice([1, 2, 3, 4, 5], p=[0.35, 0.15, 0.2, 0.2, 0.1]))
    # Lobes are on an arc; a single lobe (lymphocyte, monocyte) nearly fills the cell.
    spread = 0.0 if lobes == 1 else rng.uniform(0.35, 0.5)
    size = rng.uniform(0.6, 0.92) if lobes == 1 else rng.uniform(0.27, 0.42)
    angles = rng.uniform(0.0, 2.0 * np.pi) + np.arange(lobes) * rng.uniform(0.8, 1.4)
    steps = np.arange(side, dtype=np.float32) - side / 2
    field = np.full((side, side), -1.0, np.float32)
    shift = rng.uniform(-0.12, 0.12, 2) * radius
    for angle in angles:
        lobe_radius = radius * size * rng.uniform(0.85, 1.15)
        x = steps[None, :] - np.float32(shift[0] + radius * spread * np.cos(angle))
        y = steps[:, None] - np.float32(shift[1] + radius * spread * np.sin(angle))
        squeeze = np.float32(rng.uniform(0.8, 1.25))
        field = np.maximum(field, 1.0 - np.hypot(x * squeeze, y / squeeze) / lobe_radius)
    field += 0.25 * (_grain(rng, side, radius / 4) - 0.5)
    return np.asarray(np.clip(field * rng.uniform(6.0, 16.0), 0.0, 1.0), np.float32)
