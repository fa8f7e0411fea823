"""Boxes from two corners and a center (*CenterNet: Keypoint Triplets*, Duan et al. 2019)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model_package import CornerTripletsDecoder
from service.decoders.corner_pairs import (
    Pairs,
    concatenate,
    read_pairs,
    several_scales,
    suppress,
    to_resized,
)
from service.decoders.model_output import ModelOutput
from service.decoders.types import DetectionOptions, Detections

_MARGIN_PX = 5.0
"""Boxes that reach this far out of the image are dropped."""
_LARGE_AREA = 150.0**2
"""Larger boxes have their central region a fifth as wide, others a third (section 3.1)."""


@dataclass(frozen=True)
class Centers:
    """Center keypoints in the image, in the order in which they are tried.

    ``points``: float64 (m, 2) in pixels; ``scores``: float32 (m,); ``class_ids``: int32 (m,).
    """

    points: NDArray[np.float64]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int32]


class CornerTriplets:
    """Keeps the pairs of corners with a center keypoint of their class in the middle.

    Differs from the reference implementation as :class:`service.decoders.corner_pairs.CornerPairs` does.
    """

    def __init__(self, _facts: CornerTripletsDecoder) -> None:
        """Need nothing of the manifest: the outputs say everything."""

    def decode(self, views: Sequence[ModelOutput], options: DetectionOptions) -> Detections:
        """Decode the views of one image (see :class:`CornerTripletsDecoder` for their outputs)."""
        # As in the reference implementation, the centers come from the image at its own scale alone.
        centers = _read_centers([view for view in views if view.placement.test_scale == 1])
        return decode_triplets(views, centers, options)


def decode_triplets(
    views: Sequence[ModelOutput], centers: Centers, options: DetectionOptions
) -> Detections:
    """Join the views' pairs of corners with ``centers``, wherever those come from."""
    pairs = concatenate([read_pairs(view, _MARGIN_PX) for view in views])
    return suppress(confirm(pairs, centers), options, merge=several_scales(views))


def _read_centers(views: Sequence[ModelOutput]) -> Centers:
    points = [to_resized(view.outputs["centers"].astype(np.float64), view) for view in views]
    return Centers(
        np.concatenate(points),
        np.concatenate([view.outputs["center_scores"] for view in views]),
        np.concatenate([view.outputs["center_class_ids"] for view in views]),
    )


def confirm(pairs: Pairs, centers: Centers) -> Pairs:
    """Keep the pairs with a center inside their central region; score = mean of the three.

    The first center that fits counts, as in the reference implementation: the image's own by descending
    score, then the flipped image's.
    """
    low, high = central_regions(pairs.boxes_xyxy)
    # One row per pair, so that its first center is found in adjacent memory.
    fits = pairs.class_ids[:, None] == centers.class_ids
    for axis in (0, 1):
        at = centers.points[:, axis].astype(np.float32)
        fits &= at > low[:, axis, None]
        fits &= at < high[:, axis, None]
    first = fits.argmax(axis=1)
    confirmed = np.flatnonzero(fits[np.arange(len(fits)), first])
    kept = pairs[confirmed]
    return replace(kept, scores=(kept.scores * 2 + centers.scores[first[confirmed]]) / 3)


def central_regions(
    boxes_xyxy: NDArray[np.float64],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Both ends (n, 2) of the middle third of each side, or the middle fifth of large boxes."""
    first, last = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    large = (last - first).prod(axis=1, keepdims=True) > _LARGE_AREA
    margin = (last - first) * np.where(large, 2 / 5, 1 / 3)
    return (first + margin).astype(np.float32), (last - margin).astype(np.float32)
