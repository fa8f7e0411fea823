"""The model under test: what it is, and how pictures are put to it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from evaluation.detections import Answer, read_answer
from evaluation.errors import EvaluationError
from evaluation.ground_truth import Picture

IN_FLIGHT = 4
"""Pictures put to the model at once, offline and over HTTP; so many are in memory."""
TOP_K = 100
"""Detections per picture that COCO's metrics look at."""
TASKS: Mapping[str, str] = {"center_poses": "poses", "center_boxes_3d": "boxes_3d"}
"""What decoders find beyond boxes."""


@dataclass(frozen=True)
class ModelUnderTest:
    """What judging needs to know of a model; ``joints`` and ``skeleton`` as in its manifest."""

    name: str
    version: str
    kind: str
    classes: tuple[str, ...]
    score_threshold: float
    top_k: int
    engine: str
    reached: str
    joints: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()

    @property
    def task(self) -> str:
        """``boxes``, ``poses`` or ``boxes_3d``."""
        return TASKS.get(self.kind, "boxes")

    def read(self, detections: Sequence[Mapping[str, Any]]) -> Answer:
        """Read the ``detections`` of an answer."""
        in_space = self.task == "boxes_3d"
        return read_answer(detections, joints=len(self.joints), in_space=in_space)

    def options(self, picture: Picture) -> dict[str, Any]:
        """Ask for everything that metrics look at, whatever its score."""
        options: dict[str, Any] = {"score_threshold": 0.0, "top_k": min(TOP_K, self.top_k)}
        if picture.projection is not None and self.task == "boxes_3d":
            options["projection"] = list(picture.projection)
        return options


@dataclass
class Run:
    """The answers to all pictures, in their order, and how long they took."""

    answers: list[Answer | None]
    latencies_s: list[float] = field(default_factory=list)
    wall_s: float = 0.0

    def all_answers(self) -> list[Answer]:
        """The answers, once every picture has one."""
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
    """A model that pictures can be put to, offline or over HTTP."""

    model: ModelUnderTest

    def detect(self, pictures: Sequence[Picture], answered: Callable[[], object]) -> Run:
        """Judge all pictures, calling ``answered`` after each; the first one goes twice.

        Raises :class:`EvaluationError` with the picture's name and what was wrong.
        """
        ...


def read_picture(picture: Picture) -> bytes:
    """The encoded picture."""
    try:
        return picture.path.read_bytes()
    except OSError as error:
        raise EvaluationError(f"{picture.path} cannot be read: {error.strerror}.") from error


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began_at = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.perf_counter() - self._began_at
