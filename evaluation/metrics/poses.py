"""Joints in pixels: PCK within a part of the body's length, and the mean error."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.detections import Answer
from evaluation.metrics.matching import match
from evaluation.ground_truth import PictureLabels

PCK_PARTS = (0.05, 0.1, 0.2)
"""Parts of the body's length that a joint may be off."""


@dataclass(frozen=True)
class JointErrors:
    """How far joints are from their labels.

    ``pck``: (parts, joints + 1), the part of all labelled joints within each of
    :data:`PCK_PARTS`, all joints together last; ``mean_error_px``: (joints + 1,) over the joints
    of objects that were found. NaN where no joint was labelled. ``objects``, ``found``: labelled
    objects with joints, and how many of them were found.
    """

    pck: NDArray[np.float64]
    mean_error_px: NDArray[np.float64]
    objects: int
    found: int


def joint_errors(pictures: Sequence[tuple[PictureLabels, Answer]], joints: int) -> JointErrors:
    """Compare the labelled joints with those of the detection that stands for their object.

    The body's length is the longest distance between two labelled joints of the object, so that
    it needs no skeleton and no name. Every joint of an object that was not found is wrong.
    """
    rows = [row for labels, answer in pictures for row in _one_picture(labels, answer, joints)]
    errors = np.array([error for error, _ in rows]).reshape(-1, joints)
    lengths = np.array([length for _, length in rows])[:, None]
    labelled = ~np.isnan(errors)
    # Of an object that was not found, the errors are infinite.
    right = np.array([errors <= part * lengths for part in PCK_PARTS])
    measured = np.where(np.isfinite(errors), errors, np.nan)
    return JointErrors(
        np.array([_means(np.where(labelled, one, np.nan)) for one in right]),
        _means(measured),
        len(rows),
        int(np.isfinite(errors).any(axis=1).sum()),
    )


def _one_picture(
    labels: PictureLabels, answer: Answer, joints: int
) -> list[tuple[NDArray[np.float64], float]]:
    """For each object with two joints or more: the errors (joints,) in pixels, and its length."""
    found = dict(match(labels, answer, same_class=True).pairs.tolist())
    rows = []
    for row in np.flatnonzero(~labels.is_crowd).tolist():
        visible = labels.keypoints[row, :, 2] > 0
        points = labels.keypoints[row, :, :2]
        if visible.sum() < 2:
            continue
        apart = points[visible][:, None] - points[visible][None]
        errors = np.full(joints, np.inf)
        if row in found:
            errors = np.linalg.norm(answer.keypoints[found[row], :, :2] - points, axis=1)
        rows.append((np.where(visible, errors, np.nan), float(np.linalg.norm(apart, axis=2).max())))
    return rows


def _means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over the rows, per column and of all; NaN where there is nothing."""
    columns = [*values.T, values.ravel()]
    kept = [column[~np.isnan(column)] for column in columns]
    return np.array([column.mean() if column.size else np.nan for column in kept])
