"""Warm-up: check the outputs of an engine, time its batch sizes and choose the maximum."""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_package import ModelManifest
from service.batching.batcher import RUN_OVERHEAD_S
from service.batching.latency_model import LatencyModel
from service.engines import Engine
from service.engines.batch_sizes import power_of_two_batch_sizes
from service.engines.output_check import check_outputs

NEARLY_BEST = 0.9
"""Share of the best throughput; smaller differences are noise within the time of a warm-up."""
MAX_OVERHEAD = 0.03
"""Share of a run's duration that is accepted as overhead, since larger batches add latency."""
RUNS_WITHIN_TARGET = 3
"""Number of runs of the chosen batch size that must fit the target latency: one run in progress,
the request's own, and decoding."""
DEFAULT_MAX_BATCH_SIZE = 8


@dataclass(frozen=True)
class BatchTiming:
    """Median duration of a run of one batch size, and throughput of all concurrent runs."""

    batch_size: int
    run_s: float
    images_per_s: float


def time_batches(
    engine: Engine,
    manifest: ModelManifest,
    largest: int,
    seconds_per_size: float,
    max_run_s: float = math.inf,
    on_timing: Callable[[BatchTiming], object] = lambda _: None,
) -> list[BatchTiming]:
    """Check the outputs of every artifact variant and time every size up to ``largest``.

    Larger sizes are left out after a run that took more than ``max_run_s``; the smallest size is
    always timed. ``on_timing`` receives each result. Raises :class:`EngineUnavailableError` if the
    outputs are not those of the manifest.
    """
    shape = (manifest.input.height_px, manifest.input.width_px, 3)
    timings: list[BatchTiming] = []
    with ThreadPoolExecutor(engine.concurrency) as threads:
        for batch_size in power_of_two_batch_sizes(largest):
            images = np.zeros((batch_size, *shape), np.uint8)
            check_outputs(engine, manifest, batch_size)
            timing = _time_runs(engine, images, threads, seconds_per_size)
            if timings and timing.run_s > max_run_s:
                break
            timings.append(timing)
            on_timing(timing)
    return timings


def _time_runs(
    engine: Engine, images: NDArray[np.uint8], threads: ThreadPoolExecutor, seconds: float
) -> BatchTiming:
    def run_repeatedly() -> list[float]:
        durations: list[float] = []
        while not durations or time.perf_counter() < end_at:
            began_at = time.perf_counter()
            engine.run(images)
            durations.append(time.perf_counter() - began_at)
        return durations

    began_at = time.perf_counter()
    end_at = began_at + seconds
    workers = [threads.submit(run_repeatedly) for _ in range(engine.concurrency)]
    durations = [duration for worker in workers for duration in worker.result()]
    elapsed_s = time.perf_counter() - began_at
    images_per_s = len(images) * len(durations) / elapsed_s
    return BatchTiming(len(images), float(np.median(durations)), images_per_s)


def choose_batch_size(timings: Sequence[BatchTiming], target_s: float | None) -> int:
    """Return the smallest batch size whose overhead per run is small.

    Only sizes that fit the target latency ``target_s`` and reach nearly the best throughput are
    considered. The result is a maximum: the batcher dispatches smaller batches at lower load.
    """
    suitable = [
        timing
        for timing in timings
        if target_s is None or RUNS_WITHIN_TARGET * timing.run_s <= target_s
    ] or [timings[0]]
    best = max(timing.images_per_s for timing in suitable)
    fast = [timing for timing in suitable if timing.images_per_s >= NEARLY_BEST * best]
    # Fitted to all of them, because a single timing has a larger error.
    slope_s, base_s = LatencyModel((timing.batch_size, timing.run_s) for timing in fast).line
    min_size = (base_s + RUN_OVERHEAD_S) / (MAX_OVERHEAD * slope_s) if slope_s else math.inf
    sizes = [timing.batch_size for timing in fast]
    return next((size for size in sizes if size >= min_size), sizes[-1])
