"""The asynchronous detector: one loaded model with dynamic batching."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from service.batching.admission import Admission
from service.batching.batcher import RUN_OVERHEAD_S, Batcher
from service.batching.latency_model import LatencyModel
from service.batching.metrics_observer import MetricsBatchObserver
from service.batching.types import (
    PRIORITY_STEP_S,
    BatchInput,
    BatchItemOutput,
    BatchLimits,
    BatchRequest,
    SchedulingOptions,
)
from service.cancellation import CancelScope, Timeout
from service.decoders.types import Detections
from service.detector import Detector, Image, Prediction, PreprocessedImage
from service.errors import DeadlineExceededError, ServiceError
from service.image_pool import COST_WEIGHT, NO_COST, ImagePool
from service.imaging.image_decoding import open_image
from service.imaging.types import DecodingCost
from service.observability.metrics import Metrics, ModelMetrics
from service.observability.statistics import InferenceStatistics
from service.observability.tracing import Tracing
from service.options import RequestOptions
from service.self_test import SelfTest
from service.settings import Settings
from service.warmup import DEFAULT_MAX_BATCH_SIZE, BatchTiming, choose_batch_size, time_batches

_log = logging.getLogger(__name__)

_WARMUP_S_PER_SIZE = 0.2
_WARMUP_MAX_RUN_S = 2.0
"""Seconds of warm-up per batch size, and run duration in seconds above which no larger batch size
is timed."""


MAX_SIZE_DELAY_S = 10.0
"""Longest delay of a request because of its number of inputs."""


@dataclass(frozen=True)
class NetworkOutputs:
    """Outputs of the network for the inputs of one request.

    ``outputs``: arrays (n, ...) by name, with the dtypes and shapes of the manifest. ``stage_s``:
    seconds per stage (queue, infer). ``batch_size``: of the largest batch that an input was part
    of.
    """

    outputs: Mapping[str, NDArray[Any]]
    stage_s: Mapping[str, float]
    batch_size: int


class AsyncDetector:
    """A :class:`Detector` whose inputs are batched with those of concurrent calls.

    ``pool``: threads that decode images and, if an image has several inputs, outputs.
    ``directory``: that of its package, if it has one. Call :meth:`warm_up`, then :meth:`start`
    inside the event loop. Requests use it within :meth:`hold`.
    """

    def __init__(
        self,
        detector: Detector,
        pool: ImagePool,
        settings: Settings,
        metrics: Metrics,
        self_test: SelfTest | None = None,
        directory: Path | None = None,
    ) -> None:
        self.detector = detector
        self.directory = directory
        self.manifest = detector.manifest
        self.rules = detector.rules
        self.timings: Sequence[BatchTiming] = ()
        self.statistics = InferenceStatistics()
        self.max_queue_delay_s = settings.max_queue_delay_ms / 1000
        self._engine = detector.engine
        self.max_batch_size = settings.max_batch_size or DEFAULT_MAX_BATCH_SIZE
        if self._engine.max_batch_size is not None:
            self.max_batch_size = min(self.max_batch_size, self._engine.max_batch_size)
        self._pool = pool
        self._settings = settings
        self._self_test = self_test
        self._self_test_error: str | None = None
        self._all_metrics = metrics
        self._tasks: list[asyncio.Task[None]] = []
        self.on_prediction: Callable[[Image, RequestOptions, Prediction], None] | None = None
        """Function that receives each image with its options and prediction."""
        self._holders = 0
        self._released = asyncio.Event()
        self._released.set()

    @property
    def engine_description(self) -> str:
        """The runtime, its version, precision and device."""
        return self._engine.description

    def warm_up(self) -> None:
        """Check and time the engine, and choose the batch size unless one is configured.

        Raises :class:`EngineUnavailableError` if the outputs differ from the manifest.
        """
        configured_size = self._settings.max_batch_size
        self.timings = time_batches(
            self._engine,
            self.manifest,
            self.max_batch_size,
            _WARMUP_S_PER_SIZE,
            math.inf if configured_size else _WARMUP_MAX_RUN_S,
        )
        if configured_size is None:
            self.max_batch_size = choose_batch_size(self.timings, self._target_s)

    def start(self, tracing: Tracing | None = None) -> None:
        """Start the batcher and the periodic self-test; call it inside the running event loop."""
        settings, spec = self._settings, self.manifest.input
        self._metrics = ModelMetrics(self._all_metrics, self.manifest.name, self.manifest.version)
        run_latency = LatencyModel((timing.batch_size, timing.run_s) for timing in self.timings)
        images_per_s = max((timing.images_per_s for timing in self.timings), default=0.0)
        self.admission = Admission(
            self.manifest.name,
            settings.max_queue_size,
            self._target_s,
            LatencyModel(
                _initial_latencies(run_latency.seconds(1), images_per_s, settings.max_queue_size)
            ),
        )
        limits = BatchLimits(
            self.max_batch_size,
            self.max_queue_delay_s,
            self.max_batch_size * spec.height_px * spec.width_px,
            # Without timings, slope and base of the model cannot be distinguished.
            RUN_OVERHEAD_S if self.timings else None,
        )
        observer = MetricsBatchObserver(self.manifest.name, self._metrics, self.statistics, tracing)
        self._run_latency = run_latency
        self._batcher = Batcher(self._engine, limits, run_latency, observer)
        self._batcher.start()
        self._metrics.watch(
            self.engine_description,
            images_per_s=images_per_s,
            limit=self.admission.limit,
            admitted=lambda: self.admission.admitted,
            oldest_age_s=lambda: self._batcher.oldest_age_s,
            seconds_per_image=lambda: run_latency.line.slope_s,
            seconds_per_batch=lambda: run_latency.line.base_s,
            is_ready=lambda: self.problem is None,
        )
        if self._self_test is not None and settings.self_test_interval_s:
            self._tasks.append(asyncio.create_task(self._repeat_self_test(self._self_test)))

    @contextmanager
    def hold(self) -> Iterator[Self]:
        """Keep the detector running until the block ends, even if it is unloaded meanwhile."""
        self._holders += 1
        self._released.clear()
        try:
            yield self
        finally:
            self._holders -= 1
            if not self._holders:
                self._released.set()

    async def retire(self) -> None:
        """Wait for the end of the last request that holds the detector, then stop it."""
        while self._holders:
            await self._released.wait()
        await self.stop()

    def remove_metrics(self) -> None:
        """Remove the series of the model, once no other detector of its version is served."""
        self._all_metrics.remove_model(self.manifest.name, self.manifest.version)

    async def stop(self) -> None:
        """Finish the admitted requests, then close the engine."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()  # their exceptions refer to the detector
        await self._batcher.stop()

    @property
    def problem(self) -> str | None:
        """Reason the model is not ready; None if it is ready."""
        return self.fatal_problem or self._self_test_error

    @property
    def fatal_problem(self) -> str | None:
        """Reason the process must be restarted; None if it need not be."""
        return self._batcher.problem or self._pool.problem

    def size_delay_s(self, places: int) -> float:
        """Return the seconds by which a request for ``places`` inputs is queued behind others.

        Requests of one input that arrive within them are run before it, so that they do not wait
        for the end of large requests.
        """
        return min(MAX_SIZE_DELAY_S, COST_WEIGHT * (places - 1) * self._run_latency.line.slope_s)

    async def detect(
        self, image: Image, options: RequestOptions, scheduling: SchedulingOptions
    ) -> Prediction:
        """Return the detections of one image.

        Raises the image errors of :mod:`service.errors`, :class:`DeadlineExceededError`,
        :class:`StoppingError` and :class:`EngineError`.
        """
        left_s = scheduling.deadline_at - time.perf_counter()
        with CancelScope(Timeout(left_s, _deadline_exceeded)):
            prediction = await self._detect(image, options, scheduling)
        if self.on_prediction is not None:
            self.on_prediction(image, options, prediction)
        return prediction

    async def draw(
        self,
        image: bytes,
        draw: Callable[[NDArray[np.uint8]], bytes],
        cost: DecodingCost,
        scheduling: SchedulingOptions,
    ) -> bytes:
        """Call ``draw`` with the upright pixels of an image at full size, in the image threads.

        ``cost``: resources that ``draw`` takes beside decoding. Raises the errors of
        :meth:`detect` but :class:`EngineError`.
        """
        opened = open_image(image, self._settings.max_image_pixels)
        total = DecodingCost(
            opened.cost.memory_bytes + cost.memory_bytes, opened.cost.cpu_s + cost.cpu_s
        )
        left_s = scheduling.deadline_at - time.perf_counter()
        with CancelScope(Timeout(left_s, _deadline_exceeded)):
            return await asyncio.wrap_future(
                self._pool.submit(lambda: draw(opened.decode().pixels), scheduling, total)
            )

    async def _detect(
        self, image: Image, options: RequestOptions, scheduling: SchedulingOptions
    ) -> Prediction:
        # Only the header is read here, so that an image that cannot be accepted is never queued.
        opened = self.detector.open_image(image)
        opened_at = time.perf_counter()
        preprocessed: PreprocessedImage | None = None
        stage_s: dict[str, float] = {}

        def prepare() -> Sequence[BatchInput]:
            nonlocal preprocessed
            began_at = time.perf_counter()
            preprocessed = self.detector.preprocess(opened, options.inputs)
            stage_s["decode_queue"] = began_at - opened_at
            stage_s["prepare"] = time.perf_counter() - began_at
            return preprocessed.inputs

        items = await run_prepared(self._batcher, self._pool, prepare, scheduling, opened.cost)
        assert preprocessed is not None
        prepared = preprocessed
        stage_s |= _engine_stages(items)
        outputs = [item.outputs for item in items]

        def postprocess() -> Detections:
            return self.detector.postprocess(outputs, prepared, options.detection)

        # The outputs of one input take about 0.1 ms: less than waiting for a thread of the pool
        # behind other images. Those of several inputs would block the event loop.
        began_at = time.perf_counter()
        if len(outputs) == 1:
            detections = postprocess()
        else:
            detections = await asyncio.wrap_future(self._pool.submit(postprocess, scheduling))
        stage_s["postprocess"] = time.perf_counter() - began_at
        self._record_stages(stage_s)
        largest = max(items, key=lambda item: item.batch_size)
        return Prediction(
            detections,
            prepared.width_px,
            prepared.height_px,
            prepared.orientation_applied,
            stage_s,
            largest.batch_size,
            largest.trigger,
        )

    async def infer(
        self, pixels: Sequence[NDArray[np.uint8]], scheduling: SchedulingOptions, *, flip: bool
    ) -> NetworkOutputs:
        """Return the outputs of the network for inputs of its default size.

        ``pixels``: uint8 RGB (height, width, 3) of each input. ``flip``: run the artifact that
        averages over the flipped image.

        Raises :class:`DeadlineExceededError`, :class:`StoppingError` and :class:`EngineError`.
        """
        inputs = [BatchInput(image, flip, 1.0 + flip) for image in pixels]
        left_s = scheduling.deadline_at - time.perf_counter()
        with CancelScope(Timeout(left_s, _deadline_exceeded)):
            items = await self._batcher.submit(inputs, scheduling)
        stage_s = _engine_stages(items)
        self._record_stages(stage_s)
        outputs = {
            name: np.stack([item.outputs[name] for item in items]) for name in items[0].outputs
        }
        return NetworkOutputs(outputs, stage_s, max(item.batch_size for item in items))

    def _record_stages(self, stage_s: Mapping[str, float]) -> None:
        for stage, seconds in stage_s.items():
            self._metrics.stage(stage, seconds)
        self.statistics.count_stages(stage_s)

    async def _repeat_self_test(self, self_test: SelfTest) -> None:
        """Run the self-test periodically, at the lowest priority."""
        scheduling = SchedulingOptions(priority_offset_s=-PRIORITY_STEP_S)
        while True:
            await asyncio.sleep(self._settings.self_test_interval_s)
            try:
                (item,) = await self._batcher.submit([BatchInput(self_test.pixels)], scheduling)
            except ServiceError as error:
                self._self_test_error = f"the self-test could not be run: {error}"
                self._metrics.self_test("failed")
                continue
            outputs = {name: values[np.newaxis] for name, values in item.outputs.items()}
            self._self_test_error = self_test.error_of(outputs, self._engine.precision)
            self._metrics.self_test("wrong" if self._self_test_error else "ok")
            if self._self_test_error:
                _log.error("%s: %s", self.manifest.name, self._self_test_error)

    @property
    def _target_s(self) -> float | None:
        target_ms = self._settings.target_latency_ms
        return None if target_ms is None else target_ms / 1000


async def run_prepared(
    batcher: Batcher,
    pool: ImagePool,
    prepare: Callable[[], Sequence[BatchInput]],
    scheduling: SchedulingOptions,
    cost: DecodingCost = NO_COST,
) -> list[BatchItemOutput]:
    """Call ``prepare`` in ``pool``, queue its inputs from there, and return their outputs.

    ``cost``: resources that ``prepare`` takes. The inputs do not pass through the event loop.
    Raises the exceptions of ``prepare``, :meth:`ImagePool.submit`, :meth:`Batcher.put` and
    :meth:`Batcher.wait`.
    """
    request = batcher.new_request(scheduling)
    # The traceback of an error refers to the arguments and variables of these functions, and the
    # request and the future to the error. The list and `del` break these cycles, so that images are
    # freed without garbage collection.
    holder = [request]
    future = pool.submit(lambda: _prepare_and_put(batcher, holder, prepare), scheduling, cost)
    future.add_done_callback(lambda done: _forward_error(batcher, holder, done))
    try:
        return await batcher.wait(request)
    finally:
        future.cancel()
        holder.clear()
        del request, future


def _prepare_and_put(
    batcher: Batcher, holder: list[BatchRequest], prepare: Callable[[], Sequence[BatchInput]]
) -> None:
    for request in holder:  # empty if the request was cancelled meanwhile
        try:
            batcher.put(request, prepare())
        finally:
            del request


def _forward_error(batcher: Batcher, holder: list[BatchRequest], done: "Future[None]") -> None:
    error = None if done.cancelled() else done.exception()
    if error is not None:
        for request in holder:
            batcher.fail(request, error)


def _deadline_exceeded() -> DeadlineExceededError:
    return DeadlineExceededError(
        "The response was not ready by the deadline and the request was dropped. "
        "Send it again when the service is less busy, or allow more time."
    )


def _initial_latencies(
    run_s: float, images_per_s: float, max_queue_size: int
) -> list[tuple[float, float]]:
    """Return expected latencies (admitted inputs, seconds) from the warm-up."""
    if not images_per_s:
        return []
    return [(1, run_s), (max_queue_size, run_s + (max_queue_size - 1) / images_per_s)]


def _engine_stages(items: Sequence[BatchItemOutput]) -> dict[str, float]:
    """Return the seconds until the first input began to run, and from then to the last output."""
    queue_s = min(item.queue_s for item in items)
    return {"queue": queue_s, "infer": max(item.queue_s + item.infer_s for item in items) - queue_s}
