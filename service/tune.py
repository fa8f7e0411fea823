"""``centernet-serve tune``: find the batch size and queue delay for a latency on this machine."""

import asyncio
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from pydantic_settings import CliImplicitFlag
from tqdm import tqdm

from command_line.progress import progress_bar
from model_package import ModelManifest
from service.batching.batcher import RUN_OVERHEAD_S, Batcher
from service.batching.latency_model import LatencyModel
from service.batching.types import BatchInput, BatchLimits, BatchRun
from service.detector import open_model_engine
from service.engines import Engine
from service.engines.batch_sizes import power_of_two_batch_sizes
from service.model_repository import find_packages
from service.self_test import draw_test_image
from service.settings import Settings
from service.warmup import BatchTiming, time_batches

LOAD = 0.8
"""Share of the engine's best throughput at which latencies are compared."""
MAX_BATCH_SIZE = 32
KEPT_UP = 0.97
"""A trial kept up if its throughput is at least this share of the offered rate."""
_SEED = 1


class TuneSettings(Settings):
    """Settings of the service, and of the search."""

    p99_ms: float = Field(
        100.0,
        gt=0,
        le=3_600_000,
        description="Target of the 99th percentile of the latency, in milliseconds.",
    )
    seconds: float = Field(5.0, gt=0, le=600, description="Duration of each trial in seconds.")
    output: Path | None = Field(None, description="JSON file for all measurements.")
    quiet: CliImplicitFlag[bool] = Field(False, description="Print no progress.")


@dataclass(frozen=True)
class Trial:
    """Latencies of one configuration, from arrival to outputs, for inputs at random times."""

    max_batch_size: int
    max_queue_delay_ms: float
    offered_per_s: float
    images_per_s: float
    p50_ms: float
    p99_ms: float
    mean_batch_size: float

    @property
    def kept_up(self) -> bool:
        """True if the throughput reached :data:`KEPT_UP` of the offered rate."""
        return self.images_per_s >= KEPT_UP * self.offered_per_s


@dataclass(frozen=True)
class ModelTuning:
    """Measurements of one model; ``chosen`` is the best trial, None if no trial kept up."""

    model: str
    engine: str
    timings: Sequence[BatchTiming]
    trials: Sequence[Trial]
    chosen: Trial | None


def tune(settings: TuneSettings, log: Callable[[str], None]) -> list[ModelTuning]:
    """Measure every model, log the results and write ``settings.output``.

    Raises :class:`model_package.PackageError` and
    :class:`service.engines.EngineUnavailableError`.
    """
    tunings = []
    for package in find_packages(settings):
        engine, _ = open_model_engine(package, settings)
        try:
            tunings.append(_tune_model(package.manifest, engine, settings, log))
        finally:
            engine.close()
    if settings.output is not None:
        document = [asdict(tuning) for tuning in tunings]
        settings.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return tunings


def _tune_model(
    manifest: ModelManifest, engine: Engine, settings: TuneSettings, log: Callable[[str], None]
) -> ModelTuning:
    log(f"{manifest.name} on {engine.description}, {engine.concurrency} runs at a time")
    largest = min(
        settings.max_batch_size or MAX_BATCH_SIZE, engine.max_batch_size or MAX_BATCH_SIZE
    )
    max_run_s = settings.p99_ms / 1000
    log("  batch size  run ms  images/s")
    sizes = len(power_of_two_batch_sizes(largest))
    with _bar(manifest, settings, sizes, "sizes") as bar:

        def on_timing(timing: BatchTiming) -> None:
            log(f"  {timing.batch_size:10}  {1000 * timing.run_s:6.1f}  {timing.images_per_s:8.1f}")
            bar.update()

        timings = time_batches(
            engine, manifest, largest, settings.seconds / 4, max_run_s, on_timing
        )
    rate = LOAD * max(timing.images_per_s for timing in timings)
    log(f"  at {rate:.1f} images/s, {100 * LOAD:.0f} % of the best rate, arriving at random:")
    log("  batch size  delay ms  p50 ms  p99 ms  mean batch")
    trials = []
    candidates = list(_candidates(timings))
    with _bar(manifest, settings, len(candidates), "trials") as bar:
        for limits in candidates:
            trial = asyncio.run(
                _run_trial(engine, manifest, limits, timings, rate, settings.seconds)
            )
            trials.append(trial)
            log(
                f"  {trial.max_batch_size:10}  {trial.max_queue_delay_ms:8.1f}  {trial.p50_ms:6.1f}"
                f"  {trial.p99_ms:6.1f}  {trial.mean_batch_size:10.2f}"
                + ("" if trial.kept_up else "  (could not keep up)")
            )
            bar.update()
    chosen = min((trial for trial in trials if trial.kept_up), key=_p99_ms, default=None)
    _log_advice(chosen, settings, log)
    return ModelTuning(manifest.name, engine.description, timings, trials, chosen)


def _bar(manifest: ModelManifest, settings: TuneSettings, total: int, unit: str) -> "tqdm[Any]":
    return progress_bar(
        quiet=settings.quiet, desc=manifest.name, total=total, unit=f" {unit}", leave=False
    )


def _p99_ms(trial: Trial) -> float:
    return trial.p99_ms


def _candidates(timings: Sequence[BatchTiming]) -> Iterable[BatchLimits]:
    """Yield every size without delay, and the largest with delays of a fraction of its run."""
    for timing in timings:
        yield BatchLimits(timing.batch_size, run_overhead_s=RUN_OVERHEAD_S)
    largest = timings[-1]
    if largest.batch_size > 1:
        for fraction in (0.1, 0.5):
            yield BatchLimits(largest.batch_size, delay_s=round(fraction * largest.run_s, 4))


def _log_advice(chosen: Trial | None, settings: TuneSettings, log: Callable[[str], None]) -> None:
    if chosen is None:
        log("  no configuration kept up: tune on an idle machine.")
        return
    log(f"  CENTERNET_MAX_BATCH_SIZE={chosen.max_batch_size}")
    log(f"  CENTERNET_MAX_QUEUE_DELAY_MS={chosen.max_queue_delay_ms:g}")
    if chosen.p99_ms > settings.p99_ms:
        log(
            f"  p99 is {chosen.p99_ms:.1f} ms, the target is {settings.p99_ms:g} ms: "
            "use a smaller network, a faster machine or more replicas."
        )


class BatchSizes:
    """An observer that collects the batch sizes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def batch_done(self, run: BatchRun) -> None:
        """Collect the batch size."""
        self.sizes.append(len(run.requests))

    def cancelled(self, stage: str) -> None:
        """Do nothing: no input is cancelled."""


async def _run_trial(
    engine: Engine,
    manifest: ModelManifest,
    limits: BatchLimits,
    timings: Sequence[BatchTiming],
    rate: float,
    seconds: float,
) -> Trial:
    """Submit inputs with Poisson arrivals; latencies count from the scheduled arrival times."""
    sizes = BatchSizes()
    latency_model = LatencyModel((timing.batch_size, timing.run_s) for timing in timings)
    batcher = Batcher(BorrowedEngine(engine), limits, latency_model, sizes)
    batcher.start()
    image = BatchInput(draw_test_image(manifest.input.height_px, manifest.input.width_px))
    latencies: list[float] = []

    async def submit(due_at: float) -> None:
        await batcher.submit([image])
        latencies.append(time.perf_counter() - due_at)

    random = np.random.default_rng(_SEED)
    count = max(10, math.ceil(rate * seconds))
    began_at = time.perf_counter()
    tasks = []
    for due_at in began_at + np.cumsum(random.exponential(1 / rate, count)):
        await asyncio.sleep(max(0.0, due_at - time.perf_counter()))
        tasks.append(asyncio.create_task(submit(due_at)))
    offered_s = time.perf_counter() - began_at
    await asyncio.gather(*tasks)
    elapsed_s = time.perf_counter() - began_at
    await batcher.stop()
    p50, p99 = np.percentile(latencies, [50, 99])
    return Trial(
        max_batch_size=limits.size,
        max_queue_delay_ms=1000 * limits.delay_s,
        offered_per_s=count / offered_s,
        images_per_s=count / elapsed_s,
        p50_ms=1000 * float(p50),
        p99_ms=1000 * float(p99),
        mean_batch_size=float(np.mean(sizes.sizes)),
    )


class BorrowedEngine:
    """An engine that its batcher does not close."""

    def __init__(self, engine: Engine) -> None:
        self.description = engine.description
        self.concurrency = engine.concurrency
        self.max_batch_size = engine.max_batch_size
        self.is_reference = engine.is_reference
        self.precision = engine.precision
        self.run = engine.run

    def close(self) -> None:
        """Do nothing: the owner closes the engine."""
