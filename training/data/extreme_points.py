"""Extreme points of labelled objects (*ExtremeNet*, Zhou et al. 2019)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labels.errors import DatasetError

_FLAT = 0.02
"""Points of an outline that are as close to the end of the object, as a share of its size, are on
the same edge; its middle is the extreme point (section 3)."""

_Points = NDArray[np.float64]


def extreme_points_of(annotation: Mapping[str, Any]) -> _Points:
    """Return the top, left, bottom and right point of a COCO annotation, (4, 2), x before y.

    Reads ``extreme_points``, which the data set of the reference implementation has, or the
    polygons in ``segmentation``. Raises :class:`DatasetError` if the annotation has neither.
    """
    if "extreme_points" in annotation:
        points = _numbers("extreme_points", annotation["extreme_points"])
        if points.size != 8:
            raise DatasetError(f"extreme_points has {points.size} numbers, expected 8")
        return points.reshape(4, 2)
    polygons = annotation.get("segmentation")
    if not isinstance(polygons, list) or not polygons:
        raise DatasetError(
            "has neither extreme_points nor polygons in segmentation; one of them is needed"
        )
    outlines = [_numbers("segmentation", polygon) for polygon in polygons]
    if any(outline.ndim != 1 or outline.size < 6 or outline.size % 2 for outline in outlines):
        raise DatasetError("segmentation has a polygon that is not a list of at least 3 points")
    return _of_outlines([outline.reshape(-1, 2) for outline in outlines])


def _numbers(field: str, values: Any) -> _Points:
    try:
        numbers = np.array(values, np.float64)
    except (TypeError, ValueError):
        numbers = np.full(1, np.nan)
    if not np.isfinite(numbers).all():
        raise DatasetError(f"{field} is not a list of finite numbers")
    return numbers


def _of_outlines(outlines: list[_Points]) -> _Points:
    every = np.concatenate(outlines)
    sizes = every.max(axis=0) - every.min(axis=0)
    points = np.empty((4, 2))
    for index, (axis, sign) in enumerate(((1, -1), (0, -1), (1, 1), (0, 1))):
        outline = max(outlines, key=lambda one: (sign * one[:, axis]).max())
        depth = sign * outline[:, axis]
        on_edge = depth >= depth.max() - _FLAT * sizes[axis]
        # The run of points around the outermost one, on the closed outline.
        start = int(depth.argmax())
        rolled = np.roll(on_edge, -start)
        ahead = len(rolled) if rolled.all() else int(rolled.argmin())
        behind = 0 if rolled.all() else int(rolled[::-1].argmin())
        run = outline[np.arange(start - behind, start + ahead) % len(outline), 1 - axis]
        points[index, axis] = sign * depth.max()
        points[index, 1 - axis] = (run.min() + run.max()) / 2
    return points
