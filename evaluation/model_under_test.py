"""The evaluated model, and the interface through which its detections are obtained."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from client import DetectOptions
from evaluation.detections import ImageDetections, read_detections
from evaluation.errors import EvaluationError
from evaluation.ground_truth import LabelledImage

IN_FLIGHT = 4
"""Images that are processed at the same time, offline and over HTTP, and held in memory."""
TOP_K = 100
"""Detections per image that COCO's metrics use."""
TASKS: Mapping[str, tuple[str, ...]] = {
    "center_poses": ("poses",),
    "center_boxes_3d": ("boxes_3d",),
    "center_poses_and_boxes_3d": ("poses", "boxes_3d"),
}
"""Tasks of the decoders that detect more than boxes."""


@dataclass(frozen=True)
class ModelUnderTest:
    """The properties of a model that the evaluation uses, most of them from its manifest.

    ``kind``: the decoder; ``reached``: ``offline`` or ``over HTTP``.
    """

    name: str
    version: str
    kind: str
    classes: tuple[str, ...]
    score_threshold: float
    top_k: int
    engine: str
    reached: str
    keypoints: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """What can be evaluated: ``boxes``, then ``poses`` and ``boxes_3d`` where detected."""
        return ("boxes", *TASKS.get(self.kind, ()))

    @property
    def is_3d(self) -> bool:
        """Whether the model detects 3D boxes."""
        return "boxes_3d" in self.tasks

    @property
    def has_octagons(self) -> bool:
        """Whether detections have an octagon, an approximate mask."""
        return self.kind == "extreme_points"

    def read_detections(self, detections: Sequence[Mapping[str, Any]]) -> ImageDetections:
        """Read the field ``detections`` of a response of this model."""
        return read_detections(
            detections,
            keypoint_count=len(self.keypoints),
            is_3d=self.is_3d,
            has_octagons=self.has_octagons,
        )

    def options(self, image: LabelledImage) -> DetectOptions:
        """Return request options for all detections that metrics use, down to score 0."""
        options: DetectOptions = {"score_threshold": 0.0, "top_k": min(TOP_K, self.top_k)}
        if image.projection is not None and self.is_3d:
            options["projection"] = list(image.projection)
        return options


@dataclass(frozen=True)
class DetectionRun:
    """Detections of all images, in the order of the images, and timings.

    ``latencies_s``: seconds per image; ``wall_s``: seconds for all images.
    """

    detections: Sequence[ImageDetections]
    latencies_s: Sequence[float]
    wall_s: float

    def speed(self) -> dict[str, float]:
        """Return images per second, and median and 95th percentile of the latency in ms."""
        p50, p95 = np.percentile(self.latencies_s, [50, 95]) * 1000
        return {
            "images_per_s": len(self.latencies_s) / self.wall_s,
            "latency_p50_ms": float(p50),
            "latency_p95_ms": float(p95),
        }


class DetectionSource(Protocol):
    """A model that runs in this process or behind a service."""

    model: ModelUnderTest

    def detect(
        self, images: Sequence[LabelledImage], on_result: Callable[[], object]
    ) -> DetectionRun:
        """Process all images, calling ``on_result`` after each.

        The first image is processed twice, and its first time is not measured. Raises
        :class:`EvaluationError` with the path of the image and the cause.
        """
        ...


def run_detection(
    detect_image: Callable[[LabelledImage], tuple[ImageDetections, float]],
    images: Sequence[LabelledImage],
    on_result: Callable[[], object],
) -> DetectionRun:
    """Process all images in :data:`IN_FLIGHT` threads; see :meth:`DetectionSource.detect`.

    ``detect_image`` returns the detections of one image and the seconds that it took. The first
    error ends the run.
    """
    detect_image(images[0])
    detections, latencies_s = [], []
    stopwatch = Stopwatch()
    with ThreadPoolExecutor(IN_FLIGHT) as threads:
        try:
            for image_detections, seconds in threads.map(detect_image, images):
                detections.append(image_detections)
                latencies_s.append(seconds)
                on_result()
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    return DetectionRun(detections, latencies_s, stopwatch.seconds)


def read_image(image: LabelledImage) -> bytes:
    """Read the encoded image. Raises :class:`EvaluationError`."""
    try:
        return image.path.read_bytes()
    except OSError as error:
        raise EvaluationError(f"{image.path} cannot be read: {error.strerror}.") from error


class Stopwatch:
    """Measures the seconds since its creation."""

    def __init__(self) -> None:
        self._started_at = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the creation."""
        return time.perf_counter() - self._started_at
