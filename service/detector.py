"""The heart of the service: one loaded model."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from model_package import ModelManifest
from service.batching.admission import Admission
from service.batching.batcher import (
    RUN_OVERHEAD_S,
    Batcher,
    BatchInput,
    BatchItemOutput,
    BatchLimits,
    BatchRun,
    SchedulingOptions,
    Trigger,
)
from service.batching.latency_model import LatencyModel
from service.cancellation import CancelScope, Timeout
from service.decoders import ModelOutput, make_decoder
from service.decoders.types import Detections
from service.engines import Engine, EngineUnavailableError
from service.errors import DeadlineExceededError, ServiceError
from service.http.query_parameters import PRIORITY_STEP_S, DetectParameters
from service.imaging.geometry import ImageTransform
from service.imaging.image_decoding import open_image
from service.imaging.resize import InputPlanner
from service.imaging.types import InputOptions
from service.imaging.warp import choose_reduction, warp_to_input
from service.observability.metrics import Metrics, ModelMetrics
from service.observability.tracing import Tracing
from service.options import OptionRules, RequestOptions
from service.self_test import SelfTest
from service.settings import Settings
from service.warmup import (
    DEFAULT_MAX_BATCH_SIZE,
    BatchTiming,
    calibrate,
    choose_batch_size,
)

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

_SECONDS_PER_SIZE = 0.2
_LONGEST_RUN_S = 2.0
"""Warm-up times each batch size for the former and goes no further after a run of the latter."""


@dataclass(frozen=True)
class _Prepared:
    inputs: tuple[BatchInput, ...]
    transforms: tuple[ImageTransform, ...]
    width_px: int
    height_px: int
    orientation_applied: bool


@dataclass(frozen=True)
class Prediction:
    """Detections of one image, the size of the upright image, and what the answer took."""

    detections: Detections
    image_width_px: int
    image_height_px: int
    orientation_applied: bool
    batch_size: int
    trigger: Trigger
    stage_s: dict[str, float]


class _Listener:
    """Puts what becomes of inputs into metrics and traces."""

    def __init__(self, model: str, metrics: ModelMetrics, tracing: Tracing | None) -> None:
        self._model = model
        self._metrics = metrics
        self._tracing = tracing
        self.cancelled = metrics.cancelled

    def batch_done(self, run: BatchRun) -> None:
        self._metrics.batch(len(run.requests), run.trigger)
        if self._tracing is not None:
            self._tracing.batch(
                self._model, run.requests, run.started_at, run.infer_s, trigger=run.trigger
            )


class Detector:
    """One loaded model: image bytes in, detections in original pixels out."""

    def __init__(
        self,
        manifest: ModelManifest,
        engine: Engine,
        cpu_pool: Executor,
        settings: Settings,
        metrics: Metrics,
        self_test: SelfTest | None = None,
    ) -> None:
        self.manifest = manifest
        self.engine_description = engine.description
        self.rules = OptionRules(manifest)
        self.timings: Sequence[BatchTiming] = ()
        self.max_batch_size = _largest_batch(engine, settings)
        self._engine = engine
        self._cpu_pool = cpu_pool
        self._settings = settings
        self._self_test = self_test
        self._self_test_error: str | None = None
        self._metrics = ModelMetrics(metrics, manifest.name)
        self._planner = InputPlanner(manifest, settings.max_image_pixels)
        self.decoder = make_decoder(manifest)
        self._tasks: list[asyncio.Task[None]] = []

    def warm_up(self) -> None:
        """Check and time the engine, and settle the batch size where the settings leave it open.

        Raises :class:`EngineUnavailableError` when the outputs are not those of the manifest, or
        do not agree with the self-test's.
        """
        chosen = self._settings.max_batch_size
        self.timings = calibrate(
            self._engine,
            self.manifest,
            self.max_batch_size,
            _SECONDS_PER_SIZE,
            math.inf if chosen else _LONGEST_RUN_S,
        )
        if chosen is None:
            self.max_batch_size = choose_batch_size(self.timings, self._target_s)
        # The reference has just run the self-test's image; once more would compare it with itself.
        if self._self_test is not None and not self._engine.is_reference:
            error = self._self_test.error_of(self._engine.run(self._self_test.pixels[np.newaxis]))
            if error is not None:
                raise EngineUnavailableError(
                    f"{self.manifest.name} on {self.engine_description}: {error}"
                )

    @property
    def _target_s(self) -> float | None:
        target_ms = self._settings.target_latency_ms
        return None if target_ms is None else target_ms / 1000

    @property
    def problem(self) -> str | None:
        """Why no requests should be sent here now, if so."""
        return self.fatal_problem or self._self_test_error

    @property
    def fatal_problem(self) -> str | None:
        """Why only a restart can help, if so."""
        return self._batcher.problem

    def start(self, tracing: Tracing | None = None) -> None:
        """Begin to serve; call it inside the running event loop."""
        settings, spec = self._settings, self.manifest.input
        engine_s = LatencyModel((one.batch_size, one.run_s) for one in self.timings)
        rate = max((one.images_per_s for one in self.timings), default=0.0)
        self.admission = Admission(
            self.manifest.name,
            settings.max_queue_size,
            self._target_s,
            LatencyModel(_answer_seconds(engine_s.seconds(1), rate, settings.max_queue_size)),
        )
        limits = BatchLimits(
            self.max_batch_size,
            settings.max_queue_delay_ms / 1000,
            self.max_batch_size * spec.height_px * spec.width_px,
            # A line that was not measured does not tell images from runs.
            RUN_OVERHEAD_S if self.timings else None,
        )
        self._batcher = Batcher(
            self._engine, limits, engine_s, _Listener(self.manifest.name, self._metrics, tracing)
        )
        self._batcher.start()
        self._metrics.watch(
            self.manifest.version,
            self.engine_description,
            images_per_s=rate,
            limit=self.admission.limit,
            admitted=lambda: self.admission.admitted,
            oldest_age_s=lambda: self._batcher.oldest_age_s,
            seconds_per_image=lambda: engine_s.line.slope_s,
            seconds_per_batch=lambda: engine_s.line.base_s,
            is_ready=lambda: self.problem is None,
        )
        if self._self_test is not None and settings.self_test_interval_s:
            self._tasks.append(asyncio.create_task(self._watch_engine(self._self_test)))

    async def stop(self) -> None:
        """Finish what was admitted and end the engine threads."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._batcher.stop()

    async def _watch_engine(self, self_test: SelfTest) -> None:
        """Run the self-test now and then, behind everybody else."""
        last_in_line = SchedulingOptions(priority_offset_s=-PRIORITY_STEP_S)
        while True:
            await asyncio.sleep(self._settings.self_test_interval_s)
            try:
                (row,) = await self._batcher.submit([BatchInput(self_test.pixels)], last_in_line)
            except ServiceError as error:
                self._self_test_error = f"the known image could not be run: {error}"
                self._metrics.self_test("failed")
                continue
            outputs = {name: values[np.newaxis] for name, values in row.outputs.items()}
            self._self_test_error = self_test.error_of(outputs)
            self._metrics.self_test("wrong" if self._self_test_error else "ok")
            if self._self_test_error:
                _log.error("%s: %s", self.manifest.name, self._self_test_error)

    def options(self, given: DetectParameters) -> RequestOptions:
        """Complete a request's options from the manifest.

        Raises :class:`InvalidOptionError` for what this model cannot do.
        """
        return self.rules.complete(given)

    async def predict(
        self, body: bytes, options: RequestOptions, scheduling: SchedulingOptions
    ) -> Prediction:
        """Detect the objects in one encoded image.

        Raises the image errors of :mod:`service.imaging.image_decoding`, :class:`ImageSizeError`,
        :class:`DeadlineExceededError`, :class:`StoppingError` and :class:`EngineError`.
        """
        left_s = scheduling.deadline_at - time.perf_counter()
        with CancelScope(Timeout(left_s, _too_late)):
            return await self._predict(body, options, scheduling)

    async def _predict(
        self, body: bytes, options: RequestOptions, scheduling: SchedulingOptions
    ) -> Prediction:
        done: tuple[_Prepared, float] | None = None

        def prepare() -> Sequence[BatchInput]:
            nonlocal done
            done = _timed(lambda: self._prepare(body, options.inputs))
            return done[0].inputs

        rows = await self._batcher.prepare_and_submit(self._cpu_pool, prepare, scheduling)
        assert done is not None
        prepared, prepare_s = done
        outputs = [
            ModelOutput(row.outputs, transform)
            for row, transform in zip(rows, prepared.transforms, strict=True)
        ]

        def decode() -> Detections:
            return self.decoder.decode(outputs, options.detection)

        # One input is some 0.1 ms of work: here, because in the pool it would wait behind other
        # images. More would hold up the event loop.
        detections, decode_s = _timed(decode) if len(outputs) == 1 else await self._in_pool(decode)
        stage_s = {"prepare": prepare_s, **_engine_stages(rows), "postprocess": decode_s}
        for stage, seconds in stage_s.items():
            self._metrics.stage(stage, seconds)
        largest = max(rows, key=lambda row: row.batch_size)
        return Prediction(
            detections,
            prepared.width_px,
            prepared.height_px,
            prepared.orientation_applied,
            largest.batch_size,
            largest.trigger,
            stage_s,
        )

    async def _in_pool(self, work: Callable[[], _Result]) -> tuple[_Result, float]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._cpu_pool, _timed, work)

    def _prepare(self, body: bytes, options: InputOptions) -> _Prepared:
        image = open_image(body, self._settings.max_image_pixels)
        transforms = self._planner.plan_inputs(image.width_px, image.height_px, options)
        reduction = choose_reduction(transforms) if self._settings.scaled_decoding else 1
        decoded = image.decode(reduction)
        arrays = [warp_to_input(decoded, transform) for transform in transforms]
        inputs = tuple(
            BatchInput(pixels, options.flip, self._work(pixels, options.flip)) for pixels in arrays
        )
        return _Prepared(
            inputs, transforms, image.width_px, image.height_px, image.orientation_applied
        )

    def _work(self, pixels: NDArray[np.uint8], flip: bool) -> float:
        """What an input costs, where one of the usual size without ``flip`` costs 1."""
        spec = self.manifest.input
        return (1 + flip) * pixels.size / (3 * spec.height_px * spec.width_px)


def _too_late() -> DeadlineExceededError:
    return DeadlineExceededError(
        "The answer was not ready by the deadline and the request was dropped. "
        "Send it again when the service is less busy, or allow more time."
    )


def _largest_batch(engine: Engine, settings: Settings) -> int:
    """The batch size that the settings ask for, within what the engine takes."""
    asked = settings.max_batch_size or DEFAULT_MAX_BATCH_SIZE
    return asked if engine.max_batch_size is None else min(asked, engine.max_batch_size)


def _answer_seconds(alone_s: float, images_per_s: float, places: int) -> list[tuple[float, float]]:
    """What calibration lets expect of the time to answer when so many inputs are inside."""
    if not images_per_s:
        return []
    return [(1, alone_s), (places, alone_s + (places - 1) / images_per_s)]


def _timed(work: Callable[[], _Result]) -> tuple[_Result, float]:
    """What ``work`` gives, and the seconds it took."""
    started_at = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started_at


def _engine_stages(rows: Sequence[BatchItemOutput]) -> dict[str, float]:
    """Until the first input of the request began to run, and from then until the last was done."""
    queue_s = min(row.queue_s for row in rows)
    return {"queue": queue_s, "infer": max(row.queue_s + row.infer_s for row in rows) - queue_s}
