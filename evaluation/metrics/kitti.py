"""KITTI's object benchmark: AP in the image, in bird's-eye view and in 3D, and AOS.

Follows the benchmark's own program (``evaluate_object``, the 2019 version with 40 recall points) in
the objects that count, those that are ignored, and the order in which detections are assigned.
No library is used: pycocotools has neither difficulties nor rotated boxes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.detections import ImageDetections
from evaluation.metrics.boxes_3d import bev_and_3d_iou, to_boxes_3d
from labels.kitti import DONT_CARE, KittiLabels
from labels.matching import box_coverage, box_iou

DIFFICULTIES = ("easy", "moderate", "hard")
_MIN_HEIGHT_PX = (40, 25, 25)
_MAX_OCCLUSION = (0, 1, 2)
_MAX_TRUNCATION = (0.15, 0.3, 0.5)
NEIGHBOURS: Mapping[str, str] = {"Car": "Van", "Pedestrian": "Person_sitting"}
"""Similar classes: detecting such an object is neither a true nor a false positive."""
_RECALLS = 40
IOU_KINDS = ("2D", "BEV", "3D")
"""IoU in the image, in bird's-eye view and in 3D."""


def official_iou(class_name: str) -> float:
    """Return the benchmark's IoU: 0.7 for cars, 0.5 for all other classes."""
    return 0.7 if class_name == "Car" else 0.5


def compared_ious(class_name: str) -> tuple[float, float]:
    """Return the official IoU and a lower one, more informative in 3D for a single camera."""
    official = official_iou(class_name)
    return official, official - 0.2 if official > 0.5 else 0.25


@dataclass(frozen=True)
class Frame:
    """One image: its labels, and the detections of one class with any score."""

    labels: KittiLabels
    detections: ImageDetections


@dataclass(frozen=True)
class KittiScores:
    """Scores per difficulty, 0 to 1; NaN for difficulties without objects.

    ``ap``: AP (R40) by :data:`IOU_KINDS`; ``aos``: average orientation similarity.
    """

    ap: Mapping[str, tuple[float, ...]]
    aos: tuple[float, ...]


def kitti_scores(
    frames: Sequence[Frame], class_name: str, min_iou: float, *, min_iou_2d: float | None = None
) -> KittiScores:
    """Evaluate one class; ``min_iou_2d`` applies to 2D boxes and AOS, by default ``min_iou``."""
    ious: dict[str, list[NDArray[np.float64]]] = {kind: [] for kind in IOU_KINDS}
    for frame in frames:
        bev, iou_3d = bev_and_3d_iou(to_boxes_3d(frame.labels), frame.detections.boxes_3d[:, :7])
        iou_2d = box_iou(frame.labels.boxes_xyxy, frame.detections.boxes_xyxy)
        for kind, values in zip(IOU_KINDS, (iou_2d, bev, iou_3d), strict=True):
            ious[kind].append(values)
    ap: dict[str, tuple[float, ...]] = {}
    aos: tuple[float, ...] = ()
    for kind in IOU_KINDS:
        threshold = min_iou_2d if kind == "2D" and min_iou_2d is not None else min_iou
        pairs = [
            _ap_and_aos(frames, ious[kind], class_name, level, threshold, is_2d=kind == "2D")
            for level in range(len(DIFFICULTIES))
        ]
        ap[kind] = tuple(pair[0] for pair in pairs)
        if kind == "2D":
            aos = tuple(pair[1] for pair in pairs)
    return KittiScores(ap, aos)


def moderate_ap_3d(frames: Sequence[Frame], class_name: str, min_iou: float) -> float:
    """Return only the AP in 3D for moderate objects; NaN without one.

    :func:`kitti_scores` computes 18 values for each IoU, and takes as many times as long.
    """
    ious = [
        bev_and_3d_iou(to_boxes_3d(frame.labels), frame.detections.boxes_3d[:, :7])[1]
        for frame in frames
    ]
    level = DIFFICULTIES.index("moderate")
    return _ap_and_aos(frames, ious, class_name, level, min_iou, is_2d=False)[0]


@dataclass(frozen=True)
class _FrameAtLevel:
    """One frame at one difficulty.

    Attributes:
        ious: (objects, detections).
        counts: bool (objects,), False for objects that are ignored: neither true positives nor
            false negatives.
        scores: (detections,).
        is_small: bool (detections,), below the minimum height.
        is_in_dont_care: bool (detections,), in a region without labels.
        similarity: orientation similarity (objects, detections), 0 to 1.
    """

    ious: NDArray[np.float64]
    counts: NDArray[np.bool_]
    scores: NDArray[np.float64]
    is_small: NDArray[np.bool_]
    is_in_dont_care: NDArray[np.bool_]
    similarity: NDArray[np.float64]


def _ap_and_aos(
    frames: Sequence[Frame],
    ious: Sequence[NDArray[np.float64]],
    class_name: str,
    level: int,
    min_iou: float,
    *,
    is_2d: bool,
) -> tuple[float, float]:
    """Return AP and AOS at one difficulty."""
    at_level = [
        _at_level(frame, values, class_name, level, min_iou, is_2d=is_2d)
        for frame, values in zip(frames, ious, strict=True)
    ]
    objects = sum(int(frame.counts.sum()) for frame in at_level)
    if not objects:
        return float("nan"), float("nan")
    scores = [score for frame in at_level for score in _scores_of_found(frame, min_iou)]
    precision, similarity = np.zeros(_RECALLS + 1), np.zeros(_RECALLS + 1)
    for index, threshold in enumerate(recall_thresholds(scores, objects)):
        counts = np.sum([_count(frame, min_iou, threshold) for frame in at_level], axis=0)
        true_positives, false_positives, similarity_sum = counts.tolist()
        found = true_positives + false_positives
        precision[index] = true_positives / found if found else 0.0
        similarity[index] = similarity_sum / found if found else 0.0
    return _mean_of_best(precision), _mean_of_best(similarity)


def _mean_of_best(values: NDArray[np.float64]) -> float:
    """Average the best value at each recall or a higher one, without recall 0 (R40)."""
    return float(np.maximum.accumulate(values[::-1])[::-1][1:].mean())


def _at_level(
    frame: Frame,
    ious: NDArray[np.float64],
    class_name: str,
    level: int,
    min_iou: float,
    *,
    is_2d: bool,
) -> _FrameAtLevel:
    labels, detections = frame.labels, frame.detections
    types = np.array(labels.types, np.str_)
    is_class = types == class_name
    heights = labels.boxes_xyxy[:, 3] - labels.boxes_xyxy[:, 1]
    counts = np.asarray(
        is_class
        & (labels.occlusions <= _MAX_OCCLUSION[level])
        & (labels.truncations <= _MAX_TRUNCATION[level])
        & (heights > _MIN_HEIGHT_PX[level])
    )
    is_evaluated = is_class | (types == NEIGHBOURS.get(class_name, ""))
    is_in_dont_care: NDArray[np.bool_] = np.zeros(len(detections), np.bool_)
    if is_2d:  # DontCare regions have no 3D box
        regions = labels.boxes_xyxy[types == DONT_CARE]
        coverage = box_coverage(regions, detections.boxes_xyxy)
        is_in_dont_care = np.asarray((coverage > min_iou).any(axis=0))
    angles = labels.alphas[is_evaluated][:, None] - detections.boxes_3d[:, 7]
    detected_heights = np.abs(detections.boxes_xyxy[:, 3] - detections.boxes_xyxy[:, 1])
    return _FrameAtLevel(
        ious[is_evaluated],
        counts[is_evaluated],
        detections.scores,
        detected_heights < _MIN_HEIGHT_PX[level],
        is_in_dont_care,
        (1 + np.cos(angles)) / 2,
    )


# The two assignments below are the benchmark's. They differ from labels.matching in that objects
# choose among detections, by the best score and by the best IoU, and small detections come last.


def _scores_of_found(frame: _FrameAtLevel, min_iou: float) -> list[float]:
    """Return, for each detected object that counts, the best score of the detections on it."""
    is_free = np.ones(len(frame.scores), np.bool_)
    scores = []
    for row, counts in enumerate(frame.counts):
        candidates = np.flatnonzero(is_free & (frame.ious[row] > min_iou))
        if len(candidates):
            best = candidates[frame.scores[candidates].argmax()]
            is_free[best] = False
            if counts and not frame.is_small[best]:
                scores.append(float(frame.scores[best]))
    return scores


def _count(frame: _FrameAtLevel, min_iou: float, threshold: float) -> tuple[int, int, float]:
    """Count true and false positives with at least this score, and sum up their similarity."""
    is_free = frame.scores >= threshold
    is_evaluated = is_free & ~frame.is_small
    true_positives, similarity = 0, 0.0
    for row, counts in enumerate(frame.counts):
        ious = frame.ious[row]
        is_candidate = is_free & (ious > min_iou)
        if not is_candidate.any():
            continue
        # Small detections are assigned only if there is no other candidate.
        tall = np.flatnonzero(is_candidate & ~frame.is_small)
        best = tall[ious[tall].argmax()] if len(tall) else is_candidate.argmax()
        is_free[best] = False
        if counts and not frame.is_small[best]:
            true_positives += 1
            similarity += float(frame.similarity[row, best])
    false_positives = int((is_free & is_evaluated & ~frame.is_in_dont_care).sum())
    return true_positives, false_positives, similarity


def recall_thresholds(scores: Sequence[float], objects: int) -> list[float]:
    """Return the scores at which recall is closest to 0, 1/40, 2/40 ... 1, in descending order."""
    ordered = sorted(scores, reverse=True)
    thresholds: list[float] = []
    recall = 0.0
    for index, score in enumerate(ordered):
        current = (index + 1) / objects
        is_last = index == len(ordered) - 1
        if not is_last and (index + 2) / objects - recall < recall - current:
            continue
        thresholds.append(score)
        recall += 1 / _RECALLS
    return thresholds
