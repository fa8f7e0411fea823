"""How fast an engine is alone, by batch size."""

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_package import ModelManifest
from service.batching.batcher import RUN_OVERHEAD_S
from service.batching.latency_model import LatencyModel
from service.engines import Engine, EngineUnavailableError

ENOUGH_OF_BEST = 0.9
"""Rates that differ by less cannot be told apart in the time that warm-up has."""
LITTLE = 0.03
"""A share of a run's time that is not worth a larger batch, for which everybody in it waits."""
RUNS_WITHIN_TARGET = 3
"""An answer waits for about one run that has begun and for its own, and for decoding: so many
runs of the chosen batch size must fit the target."""
DEFAULT_MAX_BATCH_SIZE = 8
"""Where nothing else bounds it."""


@dataclass(frozen=True)
class BatchTiming:
    """Runs of one batch size, as many at a time as the engine takes."""

    batch_size: int
    run_s: float
    images_per_s: float


def batch_sizes_up_to(largest: int) -> list[int]:
    """1, 2, 4, ... and ``largest``."""
    return sorted({largest, *(2**power for power in range(largest.bit_length()))})


def calibrate(
    engine: Engine,
    manifest: ModelManifest,
    largest: int,
    seconds_per_size: float,
    longest_run_s: float = math.inf,
) -> list[BatchTiming]:
    """Check and time runs of every size of :func:`batch_sizes_up_to`, of each variant once.

    Sizes whose run takes longer than ``longest_run_s`` are left out, but for the smallest. Raises
    :class:`EngineUnavailableError` when the outputs are not those of the manifest.
    """
    shape = (manifest.input.height_px, manifest.input.width_px, 3)
    flips = sorted({artifact.flip for artifact in manifest.artifacts})
    timings: list[BatchTiming] = []
    with ThreadPoolExecutor(engine.concurrency) as threads:
        for batch_size in batch_sizes_up_to(largest):
            images = np.zeros((batch_size, *shape), np.uint8)
            for flip in flips:
                _check_outputs(manifest, batch_size, _try_run(engine, manifest, images, flip))
            timing = _time_runs(engine, images, threads, seconds_per_size)
            if timings and timing.run_s > longest_run_s:
                break
            timings.append(timing)
    return timings


def _time_runs(
    engine: Engine, images: NDArray[np.uint8], threads: ThreadPoolExecutor, seconds: float
) -> BatchTiming:
    def run_for_a_while() -> list[float]:
        durations: list[float] = []
        while not durations or time.perf_counter() < end_at:
            began_at = time.perf_counter()
            engine.run(images)
            durations.append(time.perf_counter() - began_at)
        return durations

    began_at = time.perf_counter()
    end_at = began_at + seconds
    workers = [threads.submit(run_for_a_while) for _ in range(engine.concurrency)]
    durations = [duration for worker in workers for duration in worker.result()]
    elapsed_s = time.perf_counter() - began_at
    rate = len(images) * len(durations) / elapsed_s
    return BatchTiming(len(images), float(np.median(durations)), rate)


def choose_batch_size(timings: Sequence[BatchTiming], target_s: float | None) -> int:
    """Take the smallest batch to which larger ones would add little, of those that suit the target.

    What a run costs beside its images is then a small part of it. A batch that is slower than
    smaller ones is never taken. It is a bound: where images come more slowly, the batcher takes
    fewer at a time.
    """
    suitable = [
        timing
        for timing in timings
        if target_s is None or RUNS_WITHIN_TARGET * timing.run_s <= target_s
    ] or [timings[0]]
    best = max(timing.images_per_s for timing in suitable)
    fast = [timing for timing in suitable if timing.images_per_s >= ENOUGH_OF_BEST * best]
    # By the line through all of them, because a single one is off by more.
    slope_s, base_s = LatencyModel((one.batch_size, one.run_s) for one in fast).line
    enough = (base_s + RUN_OVERHEAD_S) / (LITTLE * slope_s) if slope_s else math.inf
    sizes = [timing.batch_size for timing in fast]
    return next((size for size in sizes if size >= enough), sizes[-1])


def _try_run(
    engine: Engine, manifest: ModelManifest, images: NDArray[np.uint8], flip: bool
) -> Mapping[str, NDArray[Any]]:
    try:
        return engine.run(images, flip)
    except Exception as error:  # each backend has exceptions of its own
        raise EngineUnavailableError(
            f"{manifest.name} does not run on {engine.description}: {error}"
        ) from error


def _check_outputs(
    manifest: ModelManifest, batch_size: int, outputs: Mapping[str, NDArray[Any]]
) -> None:
    for spec in manifest.decoder.outputs():
        values = outputs[spec.name]
        received = (values.shape, str(values.dtype))
        expected = ((batch_size, *spec.shape), spec.dtype)
        if received != expected:
            raise EngineUnavailableError(
                f"{manifest.name}: output {spec.name} is {received}, the manifest says {expected}"
            )
