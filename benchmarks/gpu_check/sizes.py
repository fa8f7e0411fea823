"""Time ONNX Runtime on a GPU when the size of the images changes from run to run.

Sizes other than the default are not captured as CUDA graphs, and every convolution chooses its
kernel again when the shape of its input changes.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.gpu_check.engines import CUDA_VARIANTS, open_precision, precisions
from benchmarks.gpu_check.notes import Notes
from model_package import FreeSize, ModelPackage
from service.engines import Engine

Row = dict[str, Any]

NUM_SIZES = 8
REPETITIONS = 5


def check(package: ModelPackage, threads: int, notes: Notes) -> list[Row]:
    """Return one row per setting of the CUDA execution provider and precision.

    The package must have free sizes.
    """
    rows = []
    for backend in ("onnxruntime-cuda", *CUDA_VARIANTS):
        for precision in precisions(package, "onnxruntime-cuda"):
            name = f"{backend} {precision}"
            with (
                notes.fail_on_error(f"{package.manifest.name}: changing sizes, {name}"),
                open_precision(package, backend, precision, threads, 1) as engine,
            ):
                free_size = package.manifest.input.free_size
                assert free_size is not None
                measured = measure(engine, _sizes_px(free_size))
                rows.append({"package": package.manifest.name, "engine": name, **measured})
    return rows


def measure(engine: Engine, sizes_px: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Return medians in milliseconds for one image of each (height, width) in turn.

    ``first_ms`` is the first run of a size, ``changed_ms`` a later one after a run of another size,
    and ``repeated_ms`` one after a run of the same size.
    """
    images = [np.full((1, *size, 3), 127, np.uint8) for size in sizes_px]
    durations_s: dict[str, list[float]] = {"first_ms": [], "changed_ms": [], "repeated_ms": []}
    for repetition in range(1 + REPETITIONS):
        for image in images:
            for kind in ("changed_ms" if repetition else "first_ms", "repeated_ms"):
                started_s = time.perf_counter()
                engine.run(image)
                durations_s[kind].append(time.perf_counter() - started_s)
    return {kind: round(1e3 * statistics.median(values), 3) for kind, values in durations_s.items()}


def _sizes_px(free_size: FreeSize) -> list[tuple[int, int]]:
    """Return up to ``NUM_SIZES`` allowed sizes of (height, width), the largest first."""
    largest = (free_size.max_side_px + free_size.reduction_px) // free_size.multiple_px
    sides = [
        (steps * free_size.multiple_px - free_size.reduction_px)
        for steps in range(max(1, largest - NUM_SIZES + 1), largest + 1)
    ]
    return [(side, sides[-1]) for side in reversed(sides)]
