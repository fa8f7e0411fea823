"""Boxes from pairs of corners (*CornerNet*, Law and Deng 2018, section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_package import CornerPairsDecoder
from service.decoders.model_output import ModelOutput
from service.decoders.selection import wanted
from service.decoders.soft_nms import soft_nms, soft_nms_merge
from service.decoders.types import DetectionOptions, Detections
from service.imaging.geometry import CORNER_STRIDE


@dataclass(frozen=True)
class Pairs:
    """Candidate boxes of one image, from all its views.

    ``boxes_xyxy``: float64 (n, 4) in pixels of the image; ``scores``: float32 (n,); ``class_ids``:
    int32 (n,); ``corner_scores``: float32 (n, 2).
    """

    boxes_xyxy: NDArray[np.float64]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int32]
    corner_scores: NDArray[np.float32]

    def __getitem__(self, rows: NDArray[np.generic]) -> "Pairs":
        return Pairs(
            self.boxes_xyxy[rows],
            self.scores[rows],
            self.class_ids[rows],
            self.corner_scores[rows],
        )


class CornerPairs:
    """Joins the pairs found in an image, its flipped image, and both at other scales.

    Differs from the reference implementation where :mod:`service.decoders.soft_nms` says so, and in never returning
    more than ``top_k`` boxes when several share the last score.
    """

    def __init__(self, _facts: CornerPairsDecoder) -> None:
        """Need nothing of the manifest: the outputs say everything."""

    def decode(self, views: Sequence[ModelOutput], options: DetectionOptions) -> Detections:
        """Decode the views of one image (see :class:`CornerPairsDecoder` for their outputs)."""
        pairs = concatenate([read_pairs(view) for view in views])
        return suppress(pairs, options, merge=several_scales(views))


def concatenate(parts: Sequence[Pairs]) -> Pairs:
    """All candidates, in the order of the views."""
    return Pairs(
        np.concatenate([part.boxes_xyxy for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.class_ids for part in parts]),
        np.concatenate([part.corner_scores for part in parts]),
    )


def read_pairs(view: ModelOutput, margin_px: float = np.inf) -> Pairs:
    """Read the possible pairs of one view, clipped to the image.

    Leaves out boxes that reach ``margin_px`` or more out of the resized image.
    """
    outputs, placed = view.outputs, view.placement
    possible = outputs["scores"] > -1
    cells = outputs["boxes"][possible].astype(np.float64).reshape(-1, 2, 2)
    corners = to_resized(cells, view)
    if placed.flipped:  # left and right have changed places
        corners[..., 0] = corners[:, ::-1, 0]
    size = np.array([placed.resized_width_px, placed.resized_height_px])
    inside = ((corners[:, 0] > -margin_px) & (corners[:, 1] < size + margin_px)).all(axis=1)
    corners = np.clip(corners[inside], 0, size) / placed.test_scale
    return Pairs(
        corners.reshape(-1, 4),
        outputs["scores"][possible][inside],
        outputs["class_ids"][possible][inside],
        outputs["corner_scores"][possible][inside],
    )


def to_resized(points: NDArray[np.float64], view: ModelOutput) -> NDArray[np.float64]:
    """Points (..., 2) in cells to pixels of the resized image, flipped ones turned back.

    The network's inputs have odd sides: 511 pixels make 128 cells, so a cell is a little less
    than 4 pixels. Flipped images are turned at the map's width itself (not at its last cell),
    which is how the authors do it.
    """
    placed = view.placement
    input_size = np.array([placed.input_width_px, placed.input_height_px])
    map_size = (input_size + 1) // CORNER_STRIDE
    if placed.flipped:
        points = np.stack([map_size[0] - points[..., 0], points[..., 1]], axis=-1)
    return placed.to_input.inverse(points * (input_size / map_size))


def suppress(pairs: Pairs, options: DetectionOptions, *, merge: bool) -> Detections:
    """Soft-NMS per class; with ``merge``, boxes are drawn towards those that they suppress."""
    if merge:
        # Rows of any score take part in the merging, so only classes are left out before.
        pairs = pairs[wanted(np.ones_like(pairs.scores), pairs.class_ids, options)]
        left = soft_nms_merge(
            pairs.boxes_xyxy,
            pairs.scores,
            pairs.class_ids,
            pairs.corner_scores,
            top_k=options.top_k,
        )
    else:
        pairs = pairs[wanted(pairs.scores, pairs.class_ids, options)]
        left = soft_nms(pairs.boxes_xyxy, pairs.scores, pairs.class_ids, top_k=options.top_k)
    enough = left.scores >= options.score_threshold
    return Detections(
        left.boxes_xyxy[enough].astype(np.float64),
        left.scores[enough],
        pairs.class_ids[left.rows[enough]],
    )


def several_scales(views: Sequence[ModelOutput]) -> bool:
    """Whether the image was looked at in more than one size."""
    return len({view.placement.test_scale for view in views}) > 1
