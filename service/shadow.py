"""Comparison of a further version of a model with the one that is served, on some of its requests.

The further version, the shadow, runs after the request was answered, at the lowest priority, and
only while capacity is free. Its detections are compared and dropped.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labels.matching import box_iou, match_boxes
from service.async_detector import AsyncDetector
from service.batching.types import PRIORITY_STEP_S, SchedulingOptions
from service.decoders.types import Detections
from service.detector import Image, Prediction, PreprocessedImage
from service.errors import ServiceError
from service.image_pool import ImagePool
from service.imaging.types import InputOptions
from service.observability.metrics import Metrics, ShadowMetrics
from service.options import DetectParameters, RequestOptions, validate_options
from service.settings import Settings

_log = logging.getLogger(__name__)

MIN_IOU = 0.5
"""Smallest IoU of two detections of the same object."""


@dataclass(frozen=True)
class Agreement:
    """Comparison of the detections of the shadow with those of the served version, in one image.

    ``missing``: detections that only the served version has; ``extra``: those that only the shadow
    has. ``score_differences`` (absolute) and ``ious`` of the matched pairs: float64 (n,).
    """

    missing: int
    extra: int
    score_differences: NDArray[np.float64]
    ious: NDArray[np.float64]


def compare(served: Detections, shadow: Detections) -> Agreement:
    """Match detections of the same class with an IoU of at least :data:`MIN_IOU`, one to one."""
    rows, columns = match_boxes(
        served.boxes_xyxy,
        served.class_ids.astype(np.int64),
        shadow.boxes_xyxy,
        shadow.class_ids.astype(np.int64),
        MIN_IOU,
    )
    differences = served.scores[rows].astype(np.float64) - shadow.scores[columns]
    ious = box_iou(served.boxes_xyxy[rows], shadow.boxes_xyxy[columns]).diagonal()
    return Agreement(len(served) - len(rows), len(shadow) - len(rows), np.abs(differences), ious)


class ShadowRuns:
    """Runs ``shadow`` on a share of the requests of ``served``, and compares their detections.

    At most one run takes place at a time. ``is_idle``: whether there is capacity for it beside the
    requests; it receives the number of network inputs of the request that was just answered.
    Detections are compared in ``pool``.

    Raises :class:`ValueError` if the detections of the two cannot be compared.
    """

    def __init__(
        self,
        served: AsyncDetector,
        shadow: AsyncDetector,
        share: float,
        is_idle: Callable[[int], bool],
        pool: ImagePool,
        metrics: Metrics,
        timeout_s: float,
    ) -> None:
        if reason := _difference(served, shadow):
            raise ValueError(reason)
        self.served, self.shadow = served, shadow
        self._share = share
        self._is_idle = is_idle
        self._pool = pool
        self._timeout_s = timeout_s
        self._metrics = ShadowMetrics(
            metrics, served.manifest.name, served.manifest.version, shadow.manifest.version
        )
        self._due = 0.0
        self._task: asyncio.Task[None] | None = None
        served.on_prediction = self._on_prediction

    def stop(self) -> None:
        """Stop the runs, and remove their metrics."""
        self.served.on_prediction = None
        if self._task is not None:
            self._task.cancel()
        self._metrics.remove()

    def _on_prediction(self, image: Image, options: RequestOptions, prediction: Prediction) -> None:
        self._due += self._share
        if self._due < 1:
            return
        self._due -= 1
        is_running = self._task is not None and not self._task.done()
        if (
            is_running
            # Network inputs of the served version; the shadow may need others.
            or isinstance(image, PreprocessedImage)
            or not self._is_idle(options.inputs.count)
            or not _supports(self.shadow, options.inputs)
        ):
            self._metrics.request("skipped")
            return
        # In a context of its own: the run is no part of the record of the request.
        self._task = asyncio.get_running_loop().create_task(
            self._run(image, options, prediction), name="shadow run", context=Context()
        )

    async def _run(self, image: Image, options: RequestOptions, prediction: Prediction) -> None:
        deadline_at = time.perf_counter() + self._timeout_s
        scheduling = SchedulingOptions(deadline_at, -PRIORITY_STEP_S)
        shadow = self.shadow
        try:
            with shadow.hold(), shadow.admission.admit(options.inputs.count, deadline_at):
                other = await shadow.detect(image, options, scheduling)
            agreement = await asyncio.wrap_future(
                self._pool.submit(
                    lambda: compare(prediction.detections, other.detections), scheduling
                )
            )
        except ServiceError as error:
            _log.warning("a shadow run of %s failed: %s", shadow.manifest.name, error)
            self._metrics.request("failed")
        except Exception:
            _log.exception("a shadow run of %s failed", shadow.manifest.name)
            self._metrics.request("failed")
        else:
            self._metrics.request("compared")
            self._metrics.agreement(
                agreement.missing,
                agreement.extra,
                agreement.score_differences.tolist(),
                agreement.ious.tolist(),
            )


class ShadowComparisons:
    """The shadow runs of all models.

    ``running``: returns the detectors that have requests.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        pool: ImagePool,
        running: Callable[[], Sequence[AsyncDetector]],
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._pool = pool
        self._running = running
        self._pairs: dict[str, tuple[AsyncDetector, AsyncDetector]] = {}
        self._runs: dict[str, ShadowRuns] = {}

    def update(
        self, served: Mapping[str, AsyncDetector], shadows: Mapping[str, AsyncDetector]
    ) -> None:
        """Compare these shadows with the versions that are served, and stop other comparisons."""
        pairs = {name: (served[name], shadow) for name, shadow in shadows.items() if name in served}
        for name in [name for name, pair in self._pairs.items() if pairs.get(name) != pair]:
            if name in self._runs:
                self._runs.pop(name).stop()
        for name in [name for name, pair in pairs.items() if self._pairs.get(name) != pair]:
            self._start(name, *pairs[name])
        self._pairs = pairs

    def _start(self, name: str, served: AsyncDetector, shadow: AsyncDetector) -> None:
        def is_idle(places: int) -> bool:
            admitted = sum(detector.admission.admitted for detector in self._running())
            return admitted - places < served.detector.engine.concurrency and not self._pool.depth

        share, timeout_s = self._settings.shadows[name].share, self._settings.request_timeout_s
        try:
            self._runs[name] = ShadowRuns(
                served, shadow, share, is_idle, self._pool, self._metrics, timeout_s
            )
        except ValueError as error:
            _log.error(
                "version %s of %s cannot be compared: %s", shadow.manifest.version, name, error
            )


def _difference(served: AsyncDetector, shadow: AsyncDetector) -> str | None:
    """Return why the detections of two models cannot be compared; None if they can."""
    kinds = [detector.manifest.decoder.kind for detector in (served, shadow)]
    if kinds[0] != kinds[1]:
        return f"its task is {kinds[1]}, and that of the served version is {kinds[0]}"
    if served.manifest.classes != shadow.manifest.classes:
        return "its classes are not those of the served version"
    if not _supports(shadow, _default_inputs(served)):
        return "it does not support the default options of the served version"
    return None


def _default_inputs(detector: AsyncDetector) -> InputOptions:
    return detector.rules.complete(validate_options(DetectParameters, {})).inputs


def _supports(detector: AsyncDetector, inputs: InputOptions) -> bool:
    rules = detector.rules
    has_flip = inputs.add_flipped_input or inputs.flip in rules.flip
    return has_flip and inputs.keep_resolution in rules.keep_resolution
