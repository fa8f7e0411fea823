"""Keypoint errors in pixels: PCK relative to the size of the pose, and the mean error."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.detections import ImageDetections
from evaluation.ground_truth import ImageLabels
from evaluation.metrics.matching import match_detections

PCK_THRESHOLDS = (0.05, 0.1, 0.2)
"""Fractions of the pose's size within which a keypoint is correct."""


@dataclass(frozen=True)
class KeypointErrors:
    """Keypoint errors of all images; NaN where no keypoint is labelled.

    Attributes:
        pck: float64 (thresholds, keypoints + 1), the fraction of the labelled keypoints within each
            of :data:`PCK_THRESHOLDS`; the last column is over all keypoints.
        mean_error_px: float64 (keypoints + 1,), over the keypoints of detected objects.
        objects: labelled objects with two keypoints or more.
        found: those of them that were detected.
    """

    pck: NDArray[np.float64]
    mean_error_px: NDArray[np.float64]
    objects: int
    found: int


def keypoint_errors(
    images: Sequence[tuple[ImageLabels, ImageDetections]], keypoint_count: int
) -> KeypointErrors:
    """Compare labelled keypoints with those of the detections that match their objects.

    The size of a pose is the longest distance between two labelled keypoints of the object, which
    needs no skeleton and no keypoint names. For PCK, the keypoints of objects that were not
    detected are wrong.
    """
    rows = [
        row
        for labels, found in images
        for row in image_keypoint_errors(labels, found, keypoint_count)
    ]
    errors = np.array([error for error, _ in rows]).reshape(-1, keypoint_count)
    sizes = np.array([size for _, size in rows])[:, None]
    is_labelled = ~np.isnan(errors)
    # The errors of objects that were not detected are infinite.
    is_correct = np.array([errors <= threshold * sizes for threshold in PCK_THRESHOLDS])
    measured = np.where(np.isfinite(errors), errors, np.nan)
    return KeypointErrors(
        np.array([_means(np.where(is_labelled, one, np.nan)) for one in is_correct]),
        _means(measured),
        len(rows),
        int(np.isfinite(errors).any(axis=1).sum()),
    )


def image_keypoint_errors(
    labels: ImageLabels, detections: ImageDetections, keypoint_count: int
) -> list[tuple[NDArray[np.float64], float]]:
    """Return errors (keypoints,) in pixels and the pose's size, per object of two keypoints.

    The errors are NaN for keypoints without a label, and infinite for objects without a detection
    or whose detection has no keypoints.
    """
    matches = match_detections(labels, detections, same_class=True)
    detection_of = dict(matches.pairs.tolist())
    rows = []
    for row in np.flatnonzero(~labels.is_crowd).tolist():
        is_labelled = labels.keypoints[row, :, 2] > 0
        points = labels.keypoints[row, :, :2]
        if is_labelled.sum() < 2:
            continue
        differences = points[is_labelled][:, None] - points[is_labelled][None]
        size = float(np.linalg.norm(differences, axis=2).max())
        errors = np.full(keypoint_count, np.inf)
        if row in detection_of:
            detected = detections.keypoints[detection_of[row], :, :2]
            distances = np.linalg.norm(detected - points, axis=1)
            errors = np.where(np.isnan(distances), np.inf, distances)
        rows.append((np.where(is_labelled, errors, np.nan), size))
    return rows


def _means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each column and of all values, without NaN; NaN for no values."""
    columns = [*values.T, values.ravel()]
    valid = [column[~np.isnan(column)] for column in columns]
    return np.array([column.mean() if column.size else np.nan for column in valid])
