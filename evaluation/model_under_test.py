"""The model under test: what it is, and how images are put to it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from evaluation.detections import Answer, read_answer
from evaluation.errors import EvaluationError
from evaluation.ground_truth import LabelledImage

IN_FLIGHT = 4
"""Images put to the model at once, offline and over HTTP; so many are in memory."""
TOP_K = 100
"""Detections per image that COCO's metrics look at."""
TASKS: Mapping[str, str] = {"center_poses": "poses", "center_boxes_3d": "boxes_3d"}
"""What decoders find beyond boxes."""


@dataclass(frozen=True)
class ModelUnderTest:
    """What evaluating needs to know of a model; ``keypoints`` and ``skeleton`` as in its manifest."""

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
    def task(self) -> str:
        """``boxes``, ``poses`` or ``boxes_3d``."""
        return TASKS.get(self.kind, "boxes")

    def read(self, detections: Sequence[Mapping[str, Any]]) -> Answer:
        """Read the ``detections`` of an answer."""
        is_3d = self.task == "boxes_3d"
        return read_answer(detections, keypoint_count=len(self.keypoints), is_3d=is_3d)

    def options(self, image: LabelledImage) -> dict[str, Any]:
        """Ask for everything that metrics look at, whatever its score."""
        options: dict[str, Any] = {"score_threshold": 0.0, "top_k": min(TOP_K, self.top_k)}
        if image.projection is not None and self.task == "boxes_3d":
            options["projection"] = list(image.projection)
        return options


@dataclass
class Run:
    """The answers to all images, in their order, and how long they took."""

    answers: list[Answer | None]
    latencies_s: list[float] = field(default_factory=list)
    wall_s: float = 0.0

    def all_answers(self) -> list[Answer]:
        """The answers, once every image has one."""
        return [answer for answer in self.answers if answer is not None]

    def speed(self) -> dict[str, float]:
        """Images per second, and the percentiles of the time to answer in milliseconds."""
        p50, p95 = np.percentile(self.latencies_s, [50, 95]) * 1000
        return {
            "images_per_s": len(self.latencies_s) / self.wall_s,
            "latency_p50_ms": float(p50),
            "latency_p95_ms": float(p95),
        }


class Source(Protocol):
    """A model that images can be put to, offline or over HTTP."""

    model: ModelUnderTest

    def detect(self, images: Sequence[LabelledImage], answered: Callable[[], object]) -> Run:
        """Evaluate all images, calling ``answered`` after each; the first one goes twice.

        Raises :class:`EvaluationError` with the image's name and what was wrong.
        """
        ...


def read_image(image: LabelledImage) -> bytes:
    """The encoded image."""
    try:
        return image.path.read_bytes()
    except OSError as error:
        raise EvaluationError(f"{image.path} cannot be read: {error.strerror}.") from error


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began_at = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.perf_counter() - self._began_at
