"""Training objectives: the loss terms of each task and their weights.

Every function takes the network's raw maps and batched targets, both by name, and returns the
unweighted terms of one stack.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import TypeVar

from torch import Tensor

from model_export.graph.boxes_3d import depth_from_raw
from model_export.graph.extreme_points import SIDES
from model_export.graph.peaks import gather
from training.losses import (
    box_iou_loss,
    center_l1_loss,
    focal_loss,
    l1_loss,
    l1_loss_over_all_slots,
    pull_push_losses,
    rotation_loss,
    smooth_l1_loss,
)

Tensors = Mapping[str, Tensor]
_Value = TypeVar("_Value", Tensor, float)


def _sum(values: Iterable[_Value]) -> _Value:
    """Return the sum of at least one value."""
    return reduce(add, values)


@dataclass(frozen=True)
class Objective:
    """Loss terms and their weights."""

    terms: Callable[[Tensors, Tensors], dict[str, Tensor]]
    weights: Mapping[str, float]
    further_terms: Mapping[str, Callable[[Tensors, Tensors], Tensor]] = field(default_factory=dict)
    """Terms that the papers do not have, computed only if they have a weight."""

    @property
    def names(self) -> tuple[str, ...]:
        """All terms that can have a weight."""
        return (*self.weights, *(name for name in self.further_terms if name not in self.weights))

    def compute(self, maps: Tensors, targets: Tensors) -> dict[str, Tensor]:
        """Return the unweighted terms that have a weight, by name."""
        further = {
            name: term(maps, targets)
            for name, term in self.further_terms.items()
            if name in self.weights
        }
        return {**self.terms(maps, targets), **further}

    def total(self, terms: Mapping[str, _Value]) -> _Value:
        """Return the weighted sum of all terms, a scalar."""
        return _sum(weight * terms[name] for name, weight in self.weights.items())

    def reweighted(self, weights: Mapping[str, float]) -> "Objective":
        """Return the objective with some of the weights replaced."""
        return replace(self, weights={**self.weights, **weights})


def box_terms(maps: Tensors, targets: Tensors) -> dict[str, Tensor]:
    """Compute the terms of boxes, *Objects as Points*, section 3; targets: ``CenterTargets``."""
    cells, present = targets["cells"], targets["present"]
    return {
        "heatmap": focal_loss(maps["heatmap"], targets["heatmap"]),
        "offset": center_l1_loss(maps["offset"], cells, present, targets["offset"]),
        "size": center_l1_loss(maps["size"], cells, present, targets["size"]),
    }


def box_iou_term(maps: Tensors, targets: Tensors) -> Tensor:
    """Compute :func:`box_iou_loss` of ``CenterTargets``."""
    return box_iou_loss(
        maps, targets["cells"], targets["present"], targets["offset"], targets["size"]
    )


def pose_terms(maps: Tensors, targets: Tensors) -> dict[str, Tensor]:
    """Compute the terms of poses, same paper, section 4.2; targets: ``PoseTargets``."""
    return {
        **box_terms(maps, targets),
        "keypoint_offsets": l1_loss(
            maps["keypoint_offsets"],
            targets["cells"],
            targets["keypoint_mask"],
            targets["keypoint_offsets"],
        ),
        "keypoint_heatmap": focal_loss(maps["keypoint_heatmap"], targets["keypoint_heatmap"]),
        "keypoint_heatmap_offset": center_l1_loss(
            maps["keypoint_heatmap_offset"],
            targets["keypoint_cells"],
            targets["keypoint_present"],
            targets["keypoint_heatmap_offset"],
        ),
    }


def box_3d_terms(maps: Tensors, targets: Tensors) -> dict[str, Tensor]:
    """Compute the terms of 3D boxes, same paper, section 4.1; targets: ``Box3DTargets``."""
    cells, present, measured = targets["cells"], targets["present"], targets["measured"]
    depth = depth_from_raw(maps["depth"])
    return {
        "heatmap": focal_loss(maps["heatmap"], targets["heatmap"]),
        "offset": l1_loss_over_all_slots(maps["offset"], cells, present, targets["offset"]),
        "size": l1_loss_over_all_slots(maps["size"], cells, present, targets["size"]),
        "depth": l1_loss_over_all_slots(depth, cells, measured, targets["depth"]),
        "dimensions": l1_loss_over_all_slots(
            maps["dimensions"], cells, measured, targets["dimensions"]
        ),
        "rotation": rotation_loss(
            maps["rotation"],
            cells,
            present,
            targets["rotation_bins"],
            targets["rotation_residuals"],
        ),
    }


def extreme_point_terms(maps: Tensors, targets: Tensors) -> dict[str, Tensor]:
    """Compute the terms of *ExtremeNet*, section 4.1; targets: ``extreme_point_targets``."""
    heatmaps = [f"{side}_heatmap" for side in (*SIDES, "center")]
    return {
        "heatmaps": _sum(focal_loss(maps[name], targets[name]) for name in heatmaps),
        "offsets": _sum(
            center_l1_loss(
                maps[f"{side}_offset"],
                targets[f"{side}_cells"],
                targets["present"],
                targets[f"{side}_offset"],
            )
            for side in SIDES
        ),
    }


def corner_terms(maps: Tensors, targets: Tensors) -> dict[str, Tensor]:
    """Compute the terms of corner pairs, *CornerNet*, section 3; targets: ``corner_targets``."""
    top_left, bottom_right = (
        gather(maps[f"{corner}_embedding"], targets[f"{corner}_cells"]).squeeze(2)
        for corner in ("top_left", "bottom_right")
    )
    pull, push = pull_push_losses(top_left, bottom_right, targets["present"])
    return {
        "corner_heatmaps": focal_loss(maps["top_left_heatmap"], targets["top_left_heatmap"])
        + focal_loss(maps["bottom_right_heatmap"], targets["bottom_right_heatmap"]),
        "pull": pull,
        "push": push,
        "corner_offsets": _offset_loss(maps, targets, "top_left")
        + _offset_loss(maps, targets, "bottom_right"),
    }


def triplet_terms(maps: Tensors, targets: Tensors) -> dict[str, Tensor]:
    """Compute the terms of *Keypoint Triplets*, equation 1; targets: ``triplet_targets``."""
    return {
        **corner_terms(maps, targets),
        "center_heatmap": focal_loss(maps["center_heatmap"], targets["center_heatmap"]),
        "center_offset": _offset_loss(maps, targets, "center"),
    }


def _offset_loss(maps: Tensors, targets: Tensors, keypoint: str) -> Tensor:
    name = f"{keypoint}_offset"
    return smooth_l1_loss(
        maps[name], targets[f"{keypoint}_cells"], targets["present"], targets[name]
    )


_BOX_WEIGHTS = {"heatmap": 1.0, "offset": 1.0, "size": 0.1}
_CORNER_WEIGHTS = {"corner_heatmaps": 1.0, "pull": 0.1, "push": 0.1, "corner_offsets": 1.0}
_EXTREME_POINTS = Objective(extreme_point_terms, {"heatmaps": 1.0, "offsets": 1.0})

OBJECTIVES: Mapping[str, Objective] = {
    "boxes": Objective(box_terms, _BOX_WEIGHTS, {"iou": box_iou_term}),
    "poses": Objective(
        pose_terms,
        {
            **_BOX_WEIGHTS,
            "keypoint_offsets": 1.0,
            "keypoint_heatmap": 1.0,
            "keypoint_heatmap_offset": 1.0,
        },
    ),
    "boxes_3d": Objective(
        box_3d_terms, {**_BOX_WEIGHTS, "depth": 1.0, "dimensions": 1.0, "rotation": 1.0}
    ),
    "extreme_points": _EXTREME_POINTS,
    "extreme_points_agnostic": _EXTREME_POINTS,
    "corner_pairs": Objective(corner_terms, _CORNER_WEIGHTS),
    "corner_triplets": Objective(
        triplet_terms, {**_CORNER_WEIGHTS, "center_heatmap": 1.0, "center_offset": 1.0}
    ),
}
"""Objectives by task, a key of ``model_export.tasks.TASKS``, with the upstream weights."""
