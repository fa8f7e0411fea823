"""Confidence intervals of the difference between two APs on the same images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95
_SEED = 20190425


@dataclass(frozen=True)
class ClassMatches:
    """The detections of one class in all images, in descending order of score.

    Attributes:
        images: int64 (n,), index of the image of each detection.
        correct: int64, rows of the true positives at each IoU (or OKS).
        is_counted: bool (ious, n), False for detections in a crowd.
        objects: int64 (images,), labelled objects without crowds.
    """

    images: NDArray[np.int64]
    correct: Sequence[NDArray[np.int64]]
    is_counted: NDArray[np.bool_]
    objects: NDArray[np.int64]


def class_matches(evaluation: Any) -> list[ClassMatches]:
    """Return pycocotools' matches of each class, of all object sizes."""
    parameters = evaluation.params
    size_count, image_count = len(parameters.areaRng), len(parameters.imgIds)
    matches = []
    for class_index in range(len(parameters.catIds)):
        start = class_index * size_count * image_count
        found = evaluation.evalImgs[start : start + image_count]
        present = [(index, one) for index, one in enumerate(found) if one is not None]
        objects = np.zeros(image_count, np.int64)
        for index, one in present:
            objects[index] = (np.asarray(one["gtIgnore"]) == 0).sum()
        scores = np.concatenate([[], *(one["dtScores"] for _, one in present)])
        order = np.argsort(-scores, kind="mergesort")
        empty = np.empty((len(parameters.iouThrs), 0))
        is_matched, is_ignored = (
            np.hstack([empty, *(one[name] for _, one in present)])[:, order].astype(bool)
            for name in ("dtMatches", "dtIgnore")
        )
        images = np.repeat(
            [index for index, _ in present], [len(one["dtScores"]) for _, one in present]
        )
        matches.append(
            ClassMatches(
                images.astype(np.int64)[order],
                [np.flatnonzero(row) for row in is_matched & ~is_ignored],
                ~is_ignored,
                objects,
            )
        )
    return matches


def weighted_ap(
    matches: ClassMatches, weights: NDArray[np.int64], recalls: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the AP at each IoU, float64 (ious,), with each image ``weights`` times (images,).

    As pycocotools computes it; NaN without objects.
    """
    objects = int(matches.objects @ weights)
    if not objects:
        return np.full(len(matches.correct), np.nan)
    weight = weights[matches.images]
    aps = []
    for rows, is_counted in zip(matches.correct, matches.is_counted, strict=True):
        # Precision is highest, and a recall is first reached, at a true positive.
        correct = np.cumsum(weight[rows])
        precision = correct / np.maximum(np.cumsum(weight * is_counted)[rows], 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        first = np.searchsorted(correct / objects, recalls)
        aps.append(np.append(envelope, 0.0)[first].mean())  # 0 at recalls that are not reached
    return np.array(aps)


@dataclass(frozen=True)
class ApDifferences:
    """Intervals that contain the fraction :data:`LEVEL` of the differences of all resamples.

    Attributes:
        overall: ends of the intervals of AP, AP50 and AP75, second minus first run, float64 (3, 2).
        per_class: those of the AP of each class, float64 (classes, 2); NaN without objects.
    """

    overall: NDArray[np.float64]
    per_class: NDArray[np.float64]


def ap_differences(
    first: Any, second: Any, on_resample: Callable[[], object] = lambda: None
) -> ApDifferences:
    """Return percentile intervals of the paired bootstrap over images.

    Each of :data:`RESAMPLES` resamples draws as many images as there are, with replacement, and
    computes both APs on the same images (Efron and Tibshirani 1993, chapter 13). ``first``,
    ``second``: pycocotools' evaluations with the same labels. ``on_resample`` is called after each.
    """
    recalls = first.params.recThrs
    runs = class_matches(first), class_matches(second)
    image_count = len(first.params.imgIds)
    generator = np.random.default_rng(_SEED)
    differences, per_class = [], []
    for _ in range(RESAMPLES):
        drawn = generator.integers(0, image_count, image_count)
        weights = np.bincount(drawn, minlength=image_count)
        # (classes, ious)
        aps = [np.array([weighted_ap(one, weights, recalls) for one in run]) for run in runs]
        differences.append(mean_aps(aps[1]) - mean_aps(aps[0]))
        per_class.append(aps[1].mean(axis=1) - aps[0].mean(axis=1))
        on_resample()
    return ApDifferences(_intervals(differences), _intervals(per_class))


def mean_aps(aps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return AP, AP50 and AP75 of the APs (classes, 10); NaN without objects of any class."""
    labelled = aps[~np.isnan(aps[:, 0])]
    if not len(labelled):
        return np.full(3, np.nan)
    at_ious = labelled.mean(axis=0)
    return np.array([at_ious.mean(), at_ious[0], at_ious[5]])


def _intervals(resamples: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the ends of the interval of each value, (values, 2); NaN without a number."""
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    numbers = [values[~np.isnan(values)] for values in np.array(resamples).T]
    return np.array([np.quantile(one, tails) if len(one) else [np.nan] * 2 for one in numbers])
