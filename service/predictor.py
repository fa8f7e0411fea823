"""The heart of the service: one loaded model."""

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_package import ModelManifest
from service.batcher import Batcher
from service.decoders import make_decoder
from service.detections import DetectionOptions, Detections
from service.engines import Engine, EngineUnavailableError
from service.errors import DeadlineExceededError, InvalidOptionError, QueueFullError
from service.geometry import AffineTransform
from service.images import decode_image
from service.metrics import Metrics
from service.preprocess import letterbox
from service.settings import Settings


@dataclass(frozen=True)
class _Prepared:
    canvas: NDArray[np.uint8]
    transform: AffineTransform
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
        self._engine = engine
        self._cpu_pool = cpu_pool
        self._settings = settings
        self._metrics = metrics
        self._decoder = make_decoder(manifest)
        self._admitted = 0
        self._seconds_per_image = 0.0
        metrics.admission_limit.labels(manifest.name).set(settings.max_queue_size)
        metrics.admitted.labels(manifest.name).set_function(lambda: self._admitted)

    def warm_up(self) -> None:
        """Run the smallest and the largest batch, and check what comes out.

        Raises :class:`EngineUnavailableError` when the outputs are not those of the manifest.
        """
        shape = (self.manifest.input.height_px, self.manifest.input.width_px, 3)
        for batch_size in sorted({1, self._settings.max_batch_size}):
            outputs = self._engine.run(np.zeros((batch_size, *shape), np.uint8))
            for spec in self.manifest.decoder.outputs():
                values = outputs[spec.name]
                received = (values.shape, str(values.dtype))
                expected = ((batch_size, *spec.shape), spec.dtype)
                if received != expected:
                    raise EngineUnavailableError(
                        f"{self.manifest.name}: output {spec.name} is {received}, "
                        f"the manifest says {expected}"
                    )

    def start(self) -> None:
        """Begin to serve; call it inside the running event loop."""
        self._batcher = Batcher(self._engine, self._settings.max_batch_size, self._observe_batch)
        self._batcher.start()

    async def stop(self) -> None:
        """Finish what was admitted and end the engine thread."""
        await self._batcher.stop()

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold one of the model's places for the length of a request.

        Raises :class:`QueueFullError` when all are taken.
        """
        if self._admitted >= self._settings.max_queue_size:
            wait_s = self._admitted * self._seconds_per_image
            raise QueueFullError(
                f"{self._admitted} requests are waiting for model {self.manifest.name}, which is "
                "as many as are admitted. Send the request again after the time in Retry-After.",
                retry_after_s=min(60, max(1, math.ceil(wait_s))),
            )
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    def options(
        self, score_threshold: float | None, top_k: int | None, classes: Sequence[str] | None
    ) -> DetectionOptions:
        """Complete a request's options from the manifest; names become class ids.

        Raises :class:`InvalidOptionError` for what this model cannot do.
        """
        decoder = self.manifest.decoder
        if top_k is not None and top_k > decoder.top_k:
            raise InvalidOptionError(
                f"top_k: received {top_k}; model {self.manifest.name} finds at most "
                f"{decoder.top_k} objects per image."
            )
        class_ids = None
        if classes is not None:
            known = {name: index for index, name in enumerate(self.manifest.classes)}
            unknown = [name for name in classes if name not in known]
            if unknown:
                raise InvalidOptionError(
                    f"classes: received {unknown[0]!r}; model {self.manifest.name} knows "
                    f"{', '.join(known)}. Repeat the option for several classes."
                )
            class_ids = frozenset(known[name] for name in classes)
        return DetectionOptions(
            decoder.score_threshold if score_threshold is None else score_threshold,
            decoder.top_k if top_k is None else top_k,
            class_ids,
        )

    async def predict(self, body: bytes, options: DetectionOptions) -> Prediction:
        """Detect the objects in one encoded image.

        Raises the image errors of :mod:`service.images`, :class:`DeadlineExceededError`,
        :class:`StoppingError` and :class:`EngineError`.
        """
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                return await self._predict(body, options)
        except TimeoutError:
            raise DeadlineExceededError(
                f"The answer was not ready after {self._settings.request_timeout_s:g} s; "
                "the request was dropped. Send it again when the service is less busy."
            ) from None

    async def _predict(self, body: bytes, options: DetectionOptions) -> Prediction:
        prepared, prepare_s = await asyncio.get_running_loop().run_in_executor(
            self._cpu_pool, self._prepare, body
        )
        row = await self._batcher.submit(prepared.canvas)
        # Some 0.1 ms on K rows: here, because in the pool it would wait behind other pictures.
        started_at = time.perf_counter()
        detections = self._decoder.decode(row.outputs, prepared.transform, options)
        decode_s = time.perf_counter() - started_at
        stage_s = {
            "prepare": prepare_s,
            "queue": row.queue_s,
            "infer": row.infer_s,
            "postprocess": decode_s,
        }
        for stage, seconds in stage_s.items():
            self._metrics.stage_seconds.labels(self.manifest.name, stage).observe(seconds)
        return Prediction(
            detections,
            prepared.width_px,
            prepared.height_px,
            prepared.orientation_applied,
            row.batch_size,
            stage_s,
        )

    def _prepare(self, body: bytes) -> tuple[_Prepared, float]:
        started_at = time.perf_counter()
        image = decode_image(body, self._settings.max_image_pixels)
        canvas, transform = letterbox(
            image.pixels, self.manifest.input.width_px, self.manifest.input.height_px
        )
        height_px, width_px = image.pixels.shape[:2]
        prepared = _Prepared(canvas, transform, width_px, height_px, image.orientation_applied)
        return prepared, time.perf_counter() - started_at

    def _observe_batch(self, batch_size: int, infer_s: float) -> None:
        self._metrics.batch_size.labels(self.manifest.name).observe(batch_size)
        # Smoothed over about the last ten batches; only Retry-After is computed from it.
        self._seconds_per_image += 0.1 * (infer_s / batch_size - self._seconds_per_image)
