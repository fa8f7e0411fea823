"""The heart of the service: one loaded model."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from model_package import ModelManifest
from service.batcher import Batcher, BatchInput, BatchRow
from service.decoders import View, make_decoder
from service.detections import Detections
from service.engines import Engine, EngineUnavailableError
from service.errors import DeadlineExceededError, QueueFullError
from service.geometry import Placement
from service.images import decode_image
from service.metrics import Metrics
from service.options import InputOptions, OptionRules, RequestOptions
from service.parameters import DetectParameters
from service.placing import InputPlanner
from service.preprocess import draw_input
from service.settings import Settings

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class _Prepared:
    inputs: tuple[BatchInput, ...]
    placements: tuple[Placement, ...]
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
    stage_s: dict[str, float]


class Predictor:
    """One loaded model: image bytes in, detections in original pixels out."""

    def __init__(
        self,
        manifest: ModelManifest,
        engine: Engine,
        cpu_pool: Executor,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        self.manifest = manifest
        self.engine_description = engine.description
        self.rules = OptionRules(manifest)
        self._engine = engine
        self._cpu_pool = cpu_pool
        self._settings = settings
        self._metrics = metrics
        self._planner = InputPlanner(manifest, settings.max_image_pixels)
        self._decoder = make_decoder(manifest)
        self._admitted = 0
        self._seconds_per_image = 0.0
        metrics.admission_limit.labels(manifest.name).set(settings.max_queue_size)
        metrics.admitted.labels(manifest.name).set_function(lambda: self._admitted)

    def warm_up(self) -> None:
        """Run the smallest and the largest batch of each artifact, and check what comes out.

        Raises :class:`EngineUnavailableError` when the outputs are not those of the manifest.
        """
        shape = (self.manifest.input.height_px, self.manifest.input.width_px, 3)
        for flip in sorted({artifact.flip for artifact in self.manifest.artifacts}):
            for batch_size in sorted({1, self._settings.max_batch_size}):
                outputs = self._try_engine(np.zeros((batch_size, *shape), np.uint8), flip)
                for spec in self.manifest.decoder.outputs():
                    values = outputs[spec.name]
                    received = (values.shape, str(values.dtype))
                    expected = ((batch_size, *spec.shape), spec.dtype)
                    if received != expected:
                        raise EngineUnavailableError(
                            f"{self.manifest.name}: output {spec.name} is {received}, "
                            f"the manifest says {expected}"
                        )

    def _try_engine(self, images: NDArray[np.uint8], flip: bool) -> Mapping[str, NDArray[Any]]:
        try:
            return self._engine.run(images, flip)
        except Exception as error:  # each backend has exceptions of its own
            raise EngineUnavailableError(
                f"{self.manifest.name} does not run on {self.engine_description}: {error}"
            ) from error

    @property
    def is_serving(self) -> bool:
        """Whether requests are being taken from the queue."""
        return self._batcher.is_serving

    def start(self) -> None:
        """Begin to serve; call it inside the running event loop."""
        spec = self.manifest.input
        size = self._settings.max_batch_size
        self._batcher = Batcher(
            self._engine, size, self._observe_batch, size * spec.height_px * spec.width_px
        )
        self._batcher.start()

    async def stop(self) -> None:
        """Finish what was admitted and end the engine thread."""
        await self._batcher.stop()

    def options(self, given: DetectParameters) -> RequestOptions:
        """Complete a request's options from the manifest.

        Raises :class:`InvalidOptionError` for what this model cannot do.
        """
        return self.rules.complete(given)

    @contextmanager
    def admit(self, options: RequestOptions) -> Iterator[None]:
        """Hold a place of the model for each network input, for the length of a request.

        Raises :class:`QueueFullError` when too few are left; a request alone is never refused.
        """
        places = options.inputs.count
        if self._admitted and self._admitted + places > self._settings.max_queue_size:
            wait_s = self._admitted * self._seconds_per_image
            raise QueueFullError(
                f"Model {self.manifest.name} has {self._admitted} inputs waiting and admits "
                f"{self._settings.max_queue_size}; this request needs {places}. Send it again "
                "after the time in Retry-After.",
                retry_after_s=min(60, max(1, math.ceil(wait_s))),
            )
        self._admitted += places
        try:
            yield
        finally:
            self._admitted -= places

    async def predict(self, body: bytes, options: RequestOptions) -> Prediction:
        """Detect the objects in one encoded image.

        Raises the image errors of :mod:`service.images`, :class:`ImageSizeError`,
        :class:`DeadlineExceededError`, :class:`StoppingError` and :class:`EngineError`.
        """
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                return await self._predict(body, options)
        except TimeoutError:
            raise DeadlineExceededError(
                f"The answer was not ready after {self._settings.request_timeout_s:g} s; "
                "the request was dropped. Send it again when the service is less busy."
            ) from None

    async def _predict(self, body: bytes, options: RequestOptions) -> Prediction:
        prepared, prepare_s = await self._in_pool(lambda: self._prepare(body, options.inputs))
        rows = await self._batcher.submit(prepared.inputs)
        views = [
            View(row.outputs, placed) for row, placed in zip(rows, prepared.placements, strict=True)
        ]

        def decode() -> Detections:
            return self._decoder.decode(views, options.detection)

        # One view is some 0.1 ms of work: here, because in the pool it would wait behind other
        # pictures. More would hold up the event loop.
        detections, decode_s = _timed(decode) if len(views) == 1 else await self._in_pool(decode)
        stage_s = {"prepare": prepare_s, **_engine_stages(rows), "postprocess": decode_s}
        for stage, seconds in stage_s.items():
            self._metrics.stage_seconds.labels(self.manifest.name, stage).observe(seconds)
        return Prediction(
            detections,
            prepared.width_px,
            prepared.height_px,
            prepared.orientation_applied,
            max(row.batch_size for row in rows),
            stage_s,
        )

    async def _in_pool(self, work: Callable[[], _Result]) -> tuple[_Result, float]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._cpu_pool, _timed, work)

    def _prepare(self, body: bytes, options: InputOptions) -> _Prepared:
        image = decode_image(body, self._settings.max_image_pixels)
        height_px, width_px = image.pixels.shape[:2]
        placements = self._planner.place(width_px, height_px, options)
        inputs = tuple(
            BatchInput(draw_input(image.pixels, placed), options.flip) for placed in placements
        )
        return _Prepared(inputs, placements, width_px, height_px, image.orientation_applied)

    def _observe_batch(self, batch_size: int, infer_s: float) -> None:
        self._metrics.batch_size.labels(self.manifest.name).observe(batch_size)
        # Smoothed over about the last ten batches; only Retry-After is computed from it.
        self._seconds_per_image += 0.1 * (infer_s / batch_size - self._seconds_per_image)


def _timed(work: Callable[[], _Result]) -> tuple[_Result, float]:
    """What ``work`` gives, and the seconds it took."""
    started_at = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started_at


def _engine_stages(rows: Sequence[BatchRow]) -> dict[str, float]:
    """Until the first input of the request began to run, and from then until the last was done."""
    queue_s = min(row.queue_s for row in rows)
    return {"queue": queue_s, "infer": max(row.queue_s + row.infer_s for row in rows) - queue_s}
