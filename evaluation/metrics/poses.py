"""Keypoints in pixels: PCK within a part of the body's length, and the mean error."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.detections import Answer
from evaluation.ground_truth import ImageLabels
from evaluation.metrics.matching import match

PCK_PARTS = (0.05, 0.1, 0.2)
"""Parts of the body's length that a keypoint may be off."""


@dataclass(frozen=True)
class KeypointErrors:
    """How far keypoints are from their labels.

    ``pck``: (parts, keypoints + 1), the part of all labelled keypoints within each of
    :data:`PCK_PARTS`, all keypoints together last; ``mean_error_px``: (keypoints + 1,) over the keypoints
    of objects that were found. NaN where no keypoint was labelled. ``objects``, ``found``: labelled
    objects with keypoints, and how many of them were found.
    """

    pck: NDArray[np.float64]
    mean_error_px: NDArray[np.float64]
    objects: int
    found: int


def keypoint_errors(images: Sequence[tuple[ImageLabels, Answer]], keypoints: int) -> KeypointErrors:
    """Compare the labelled keypoints with those of the detection that stands for their object.

    The body's length is the longest distance between two labelled keypoints of the object, so that
    it needs no skeleton and no name. Every keypoint of an object that was not found is wrong.
    """
    rows = [row for labels, answer in images for row in _one_image(labels, answer, keypoints)]
    errors = np.array([error for error, _ in rows]).reshape(-1, keypoints)
    lengths = np.array([length for _, length in rows])[:, None]
    labelled = ~np.isnan(errors)
    # Of an object that was not found, the errors are infinite.
    right = np.array([errors <= part * lengths for part in PCK_PARTS])
    measured = np.where(np.isfinite(errors), errors, np.nan)
    return KeypointErrors(
        np.array([_means(np.where(labelled, one, np.nan)) for one in right]),
        _means(measured),
        len(rows),
        int(np.isfinite(errors).any(axis=1).sum()),
    )


def _one_image(
    labels: ImageLabels, answer: Answer, keypoints: int
) -> list[tuple[NDArray[np.float64], float]]:
    """For each object with two keypoints or more: the errors (keypoints,) in pixels, and its length."""
    found = dict(match(labels, answer, same_class=True).pairs.tolist())
    rows = []
    for row in np.flatnonzero(~labels.is_crowd).tolist():
        visible = labels.keypoints[row, :, 2] > 0
        points = labels.keypoints[row, :, :2]
        if visible.sum() < 2:
            continue
        apart = points[visible][:, None] - points[visible][None]
        errors = np.full(keypoints, np.inf)
        if row in found:
            errors = np.linalg.norm(answer.keypoints[found[row], :, :2] - points, axis=1)
        rows.append((np.where(visible, errors, np.nan), float(np.linalg.norm(apart, axis=2).max())))
    return rows


def _means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over the rows, per column and of all; NaN where there is nothing."""
    columns = [*values.T, values.ravel()]
    kept = [column[~np.isnan(column)] for column in columns]
    return np.array([column.mean() if column.size else np.nan for column in kept])
