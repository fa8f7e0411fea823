"""Labelled pictures, whatever format their labels came in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import EvaluationError

_SHOWN = 5
"""Names that an error lists before it counts the rest."""


@dataclass(frozen=True)
class Picture:
    """One picture; ``projection`` is its camera matrix (3, 4), row by row, where it is known."""

    image_id: int
    path: Path
    projection: tuple[float, ...] | None = None


@dataclass(frozen=True)
class SpaceLabels:
    """KITTI's labels of one picture, in its frame (x right, y down, z forward), metres, radians.

    ``types``: names, ``DontCare`` among them; ``truncations``, ``occlusions``, ``alphas``,
    ``rotations_y``: float64 (n,); ``boxes_xyxy``: float64 (n, 4) pixels; ``dimensions_hwl``,
    ``locations``: float64 (n, 3), the latter the middle of the bottom face.
    """

    types: tuple[str, ...]
    truncations: NDArray[np.float64]
    occlusions: NDArray[np.float64]
    alphas: NDArray[np.float64]
    boxes_xyxy: NDArray[np.float64]
    dimensions_hwl: NDArray[np.float64]
    locations: NDArray[np.float64]
    rotations_y: NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """Pictures in the order of their ids, and their labels as a COCO data set.

    ``coco`` has ``images``, ``annotations`` and ``categories``, each annotation with ``bbox``,
    ``area`` and ``iscrowd``; ``space``: by image id, None where the labels are flat. Where
    ``other_classes_are_left_out``, labels of classes that a model lacks are no error.
    """

    pictures: Sequence[Picture]
    coco: dict[str, Any]
    space: Mapping[int, SpaceLabels] | None = None
    other_classes_are_left_out: bool = False


@dataclass(frozen=True)
class PictureLabels:
    """The labels of one picture as arrays, with the model's class ids.

    ``boxes_xyxy``: float64 (n, 4); ``class_ids``: int64 (n,); ``is_crowd``: bool (n,);
    ``keypoints``: float64 (n, joints, 3) x, y, visibility, with no joints where there are none.
    """

    boxes_xyxy: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    is_crowd: NDArray[np.bool_]
    keypoints: NDArray[np.float64]


def for_classes(truth: Truth, classes: Sequence[str]) -> Truth:
    """Number the categories as the model's classes, so that category ids are class ids.

    A category is the class of its name; one whose name is a number is the class with that index.
    Raises :class:`EvaluationError` for categories with labels that the model does not know.
    """
    class_of = {name: index for index, name in enumerate(classes)}
    class_of |= {str(i): i for i in range(len(classes)) if str(i) not in class_of}
    used = {label["category_id"] for label in truth.coco["annotations"]}
    known, unknown = {}, []
    for category in truth.coco["categories"]:
        index = class_of.get(category["name"])
        if index is not None:
            known[category["id"]] = index
        elif category["id"] in used:
            unknown.append(category["name"])
    if not known or (unknown and not truth.other_classes_are_left_out):
        names = unknown or [category["name"] for category in truth.coco["categories"]]
        raise EvaluationError(
            f"the labels have the classes {listed(names)}, which the model does not know; it "
            f"knows {listed(classes)}. Rename the categories, or give a number as the name: 0 "
            "is the model's first class."
        )
    if len(set(known.values())) < len(known):
        raise EvaluationError("two categories of the labels are the same class of the model.")
    coco = dict(truth.coco)
    coco["categories"] = [
        {**category, "id": known[category["id"]], "name": classes[known[category["id"]]]}
        for category in truth.coco["categories"]
        if category["id"] in known
    ]
    coco["annotations"] = [
        {**label, "category_id": known[label["category_id"]]}
        for label in truth.coco["annotations"]
        if label["category_id"] in known
    ]
    return Truth(truth.pictures, coco, truth.space, truth.other_classes_are_left_out)


def labels_by_picture(truth: Truth) -> list[PictureLabels]:
    """The labels of each picture, in the order of the pictures; see :func:`for_classes`."""
    found: dict[int, list[dict[str, Any]]] = {picture.image_id: [] for picture in truth.pictures}
    for label in truth.coco["annotations"]:
        found[label["image_id"]].append(label)
    counts = {
        len(label["keypoints"]) for label in truth.coco["annotations"] if "keypoints" in label
    }
    joints = counts.pop() // 3 if len(counts) == 1 else 0
    return [_as_arrays(found[picture.image_id], joints) for picture in truth.pictures]


def _as_arrays(labels: Sequence[Mapping[str, Any]], joints: int) -> PictureLabels:
    boxes = np.array([label["bbox"] for label in labels], np.float64).reshape(-1, 4)
    nothing = [0.0] * 3 * joints
    points = [label.get("keypoints", nothing) if joints else nothing for label in labels]
    return PictureLabels(
        np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]),
        np.array([label["category_id"] for label in labels], np.int64),
        np.array([bool(label["iscrowd"]) for label in labels], np.bool_),
        np.array(points, np.float64).reshape(len(labels), joints, 3),
    )


def check_pictures(truth: Truth) -> None:
    """Raise :class:`EvaluationError` where there is nothing to judge, or a picture is missing."""
    if not truth.pictures:
        raise EvaluationError("the labels name no picture, so there is nothing to judge.")
    missing = [str(picture.path) for picture in truth.pictures if not picture.path.is_file()]
    if missing:
        raise EvaluationError(
            f"{len(missing)} of {len(truth.pictures)} pictures are missing: {listed(missing)}. "
            "--images must name the directory that the labels' file names start from."
        )


def listed(names: Sequence[str]) -> str:
    """Some names, and how many there are when that is not all."""
    some = ", ".join(name[:100] for name in names[:_SHOWN])
    return some if len(names) <= _SHOWN else f"{some}, ... ({len(names)} in all)"
