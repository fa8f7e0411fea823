"""KITTI's object benchmark: AP of boxes in the image, from above and in space, and AOS.

Follows the benchmark's own program (``evaluate_object``, in the edition of 2019 with 40 recalls)
in what counts, what is ignored and in which order detections are given to objects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.detections import Answer
from evaluation.ground_truth import Boxes3DLabels
from evaluation.kitti_labels import DONT_CARE
from evaluation.metrics.boxes_3d import as_boxes, overlaps_3d
from evaluation.metrics.matching import overlaps_of_boxes

DIFFICULTIES = ("easy", "moderate", "hard")
_MIN_HEIGHT_PX = (40, 25, 25)
_MAX_OCCLUSION = (0, 1, 2)
_MAX_TRUNCATION = (0.15, 0.3, 0.5)
NEIGHBOURS: Mapping[str, str] = {"Car": "Van", "Pedestrian": "Person_sitting"}
"""Objects that a class may be taken for: finding them is neither right nor wrong."""
_RECALLS = 40
WAYS = ("2D", "BEV", "3D")
"""In the image, seen from above, in space."""


def official_iou(class_name: str) -> float:
    """0.7 for cars, 0.5 for pedestrians and cyclists, and for classes that KITTI has not."""
    return 0.7 if class_name == "Car" else 0.5


@dataclass(frozen=True)
class Frame:
    """One image: its labels, and the detections of one class with any score."""

    labels: Boxes3DLabels
    found: Answer


@dataclass(frozen=True)
class KittiScores:
    """AP (R40) per difficulty by way, and the orientation similarity (AOS), 0 to 1.

    NaN where no object is of that difficulty.
    """

    ap: Mapping[str, tuple[float, ...]]
    aos: tuple[float, ...]


def kitti_scores(
    frames: Sequence[Frame], class_name: str, min_iou: float, *, min_iou_2d: float | None = None
) -> KittiScores:
    """Evaluate one class; ``min_iou_2d`` is that of the 2D boxes and of AOS where it differs."""
    overlaps: dict[str, list[NDArray[np.float64]]] = {way: [] for way in WAYS}
    for frame in frames:
        above, whole = overlaps_3d(as_boxes(frame.labels), frame.found.space[:, :7])
        flat, _ = overlaps_of_boxes(frame.labels.boxes_xyxy, frame.found.boxes_xyxy)
        for way, values in zip(WAYS, (flat, above, whole), strict=True):
            overlaps[way].append(values)
    ap: dict[str, tuple[float, ...]] = {}
    aos: tuple[float, ...] = ()
    for way in WAYS:
        needed = min_iou_2d if way == "2D" and min_iou_2d is not None else min_iou
        pairs = [
            _average(frames, overlaps[way], class_name, level, needed, in_image=way == "2D")
            for level in range(len(DIFFICULTIES))
        ]
        ap[way] = tuple(pair[0] for pair in pairs)
        if way == "2D":
            aos = tuple(pair[1] for pair in pairs)
    return KittiScores(ap, aos)


@dataclass(frozen=True)
class _Task:
    """One frame as one difficulty sees it.

    ``overlaps``: (objects, detections); ``counts``: bool (objects,), False for those that may be
    found but need not; ``small``: bool (detections,), too low to count; ``in_dont_care``: bool
    (detections,), in a region without labels; ``similarity``: (objects, detections).
    """

    overlaps: NDArray[np.float64]
    counts: NDArray[np.bool_]
    scores: NDArray[np.float64]
    small: NDArray[np.bool_]
    in_dont_care: NDArray[np.bool_]
    similarity: NDArray[np.float64]


def _average(
    frames: Sequence[Frame],
    overlaps: Sequence[NDArray[np.float64]],
    class_name: str,
    level: int,
    min_iou: float,
    *,
    in_image: bool,
) -> tuple[float, float]:
    """AP and AOS at one difficulty."""
    tasks = [
        _as_task(frame, values, class_name, level, min_iou, in_image=in_image)
        for frame, values in zip(frames, overlaps, strict=True)
    ]
    objects = sum(int(task.counts.sum()) for task in tasks)
    if not objects:
        return float("nan"), float("nan")
    scores = [score for task in tasks for score in _scores_of_found(task, min_iou)]
    precision, similarity = np.zeros(_RECALLS + 1), np.zeros(_RECALLS + 1)
    for index, threshold in enumerate(recall_thresholds(scores, objects)):
        counts = np.sum([_count(task, min_iou, threshold) for task in tasks], axis=0)
        right, wrong, alike = counts.tolist()
        precision[index] = right / (right + wrong) if right + wrong else 0.0
        similarity[index] = alike / (right + wrong) if right + wrong else 0.0
    # The best precision at this recall or a higher one; recall 0 is left out (R40).
    return _mean_of_best(precision), _mean_of_best(similarity)


def _mean_of_best(values: NDArray[np.float64]) -> float:
    return float(np.maximum.accumulate(values[::-1])[::-1][1:].mean())


def _as_task(
    frame: Frame,
    overlaps: NDArray[np.float64],
    class_name: str,
    level: int,
    min_iou: float,
    *,
    in_image: bool,
) -> _Task:
    labels, found = frame.labels, frame.found
    types = np.array(labels.types, np.str_)
    own = types == class_name
    heights = labels.boxes_xyxy[:, 3] - labels.boxes_xyxy[:, 1]
    counts = np.asarray(
        own
        & (labels.occlusions <= _MAX_OCCLUSION[level])
        & (labels.truncations <= _MAX_TRUNCATION[level])
        & (heights > _MIN_HEIGHT_PX[level])
    )
    evaluated = own | (types == NEIGHBOURS.get(class_name, ""))
    in_dont_care: NDArray[np.bool_] = np.zeros(len(found), np.bool_)
    if in_image:  # regions without labels have no place in space
        regions = labels.boxes_xyxy[types == DONT_CARE]
        _, inside = overlaps_of_boxes(regions, found.boxes_xyxy)
        in_dont_care = np.asarray((inside > min_iou).any(axis=0))
    angles = labels.alphas[evaluated][:, None] - found.space[:, 7]
    found_heights = np.abs(found.boxes_xyxy[:, 3] - found.boxes_xyxy[:, 1])
    return _Task(
        overlaps[evaluated],
        counts[evaluated],
        found.scores,
        found_heights < _MIN_HEIGHT_PX[level],
        in_dont_care,
        (1 + np.cos(angles)) / 2,
    )


def _scores_of_found(task: _Task, min_iou: float) -> list[float]:
    """The score at which each object that counts is found: the best among what overlaps it."""
    free = np.ones(len(task.scores), np.bool_)
    scores = []
    for row, counts in enumerate(task.counts):
        fits = np.flatnonzero(free & (task.overlaps[row] > min_iou))
        if len(fits):
            best = fits[task.scores[fits].argmax()]
            free[best] = False
            if counts and not task.small[best]:
                scores.append(float(task.scores[best]))
    return scores


def _count(task: _Task, min_iou: float, threshold: float) -> tuple[int, int, float]:
    """Right and wrong detections of at least that score, and the sum of orientation similarity."""
    free = task.scores >= threshold
    evaluated = free & ~task.small
    right, alike = 0, 0.0
    for row, counts in enumerate(task.counts):
        overlaps = task.overlaps[row]
        fits = free & (overlaps > min_iou)
        if not fits.any():
            continue
        # Detections that are too low are taken only where no other fits.
        tall = np.flatnonzero(fits & ~task.small)
        best = tall[overlaps[tall].argmax()] if len(tall) else fits.argmax()
        free[best] = False
        if counts and not task.small[best]:
            right += 1
            alike += float(task.similarity[row, best])
    wrong = int((free & evaluated & ~task.in_dont_care).sum())
    return right, wrong, alike


def recall_thresholds(scores: Sequence[float], objects: int) -> list[float]:
    """The scores at which recall comes closest to 0, 1/40, 2/40 ... 1, best first."""
    ordered = sorted(scores, reverse=True)
    thresholds: list[float] = []
    recall = 0.0
    for index, score in enumerate(ordered):
        here = (index + 1) / objects
        last = index == len(ordered) - 1
        if not last and (index + 2) / objects - recall < recall - here:
            continue
        thresholds.append(score)
        recall += 1 / _RECALLS
    return thresholds
