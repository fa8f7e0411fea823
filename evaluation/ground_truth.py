"""Labelled images, whatever format their labels came in."""

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
class LabelledImage:
    """One image; ``projection`` is its camera matrix (3, 4), row by row, where it is known."""

    image_id: int
    path: Path
    projection: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Boxes3DLabels:
    """KITTI's labels of one image, in its frame (x right, y down, z forward), metres, radians.

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
class GroundTruth:
    """Images in the order of their ids, and their labels as a COCO data set.

    ``coco`` has ``images``, ``annotations`` and ``categories``, each annotation with ``bbox``,
    ``area`` and ``iscrowd``; ``space``: by image id, None where the labels are flat. Where
    ``other_classes_are_left_out``, labels of classes that a model lacks are no error.
    """

    images: Sequence[LabelledImage]
    coco: dict[str, Any]
    space: Mapping[int, Boxes3DLabels] | None = None
    other_classes_are_left_out: bool = False


@dataclass(frozen=True)
class ImageLabels:
    """The labels of one image as arrays, with the model's class ids.

    ``boxes_xyxy``: float64 (n, 4); ``class_ids``: int64 (n,); ``is_crowd``: bool (n,);
    ``keypoints``: float64 (n, keypoints, 3) x, y, visibility, with no keypoints where there are none.
    """

    boxes_xyxy: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    is_crowd: NDArray[np.bool_]
    keypoints: NDArray[np.float64]


def for_classes(ground_truth: GroundTruth, classes: Sequence[str]) -> GroundTruth:
    """Number the categories as the model's classes, so that category ids are class ids.

    A category is the class of its name; one whose name is a number is the class with that index.
    Raises :class:`EvaluationError` for categories with labels that the model does not know.
    """
    class_of = {name: index for index, name in enumerate(classes)}
    class_of |= {str(i): i for i in range(len(classes)) if str(i) not in class_of}
    used = {label["category_id"] for label in ground_truth.coco["annotations"]}
    known, unknown = {}, []
    for category in ground_truth.coco["categories"]:
        index = class_of.get(category["name"])
        if index is not None:
            known[category["id"]] = index
        elif category["id"] in used:
            unknown.append(category["name"])
    if not known or (unknown and not ground_truth.other_classes_are_left_out):
        names = unknown or [category["name"] for category in ground_truth.coco["categories"]]
        raise EvaluationError(
            f"the labels have the classes {listed(names)}, which the model does not know; it "
            f"knows {listed(classes)}. Rename the categories, or give a number as the name: 0 "
            "is the model's first class."
        )
    if len(set(known.values())) < len(known):
        raise EvaluationError("two categories of the labels are the same class of the model.")
    coco = dict(ground_truth.coco)
    coco["categories"] = [
        {**category, "id": known[category["id"]], "name": classes[known[category["id"]]]}
        for category in ground_truth.coco["categories"]
        if category["id"] in known
    ]
    coco["annotations"] = [
        {**label, "category_id": known[label["category_id"]]}
        for label in ground_truth.coco["annotations"]
        if label["category_id"] in known
    ]
    return GroundTruth(
        ground_truth.images, coco, ground_truth.space, ground_truth.other_classes_are_left_out
    )


def labels_by_image(ground_truth: GroundTruth) -> list[ImageLabels]:
    """The labels of each image, in the order of the images; see :func:`for_classes`."""
    found: dict[int, list[dict[str, Any]]] = {image.image_id: [] for image in ground_truth.images}
    for label in ground_truth.coco["annotations"]:
        found[label["image_id"]].append(label)
    counts = {
        len(label["keypoints"])
        for label in ground_truth.coco["annotations"]
        if "keypoints" in label
    }
    keypoints = counts.pop() // 3 if len(counts) == 1 else 0
    return [_as_arrays(found[image.image_id], keypoints) for image in ground_truth.images]


def _as_arrays(labels: Sequence[Mapping[str, Any]], keypoints: int) -> ImageLabels:
    boxes = np.array([label["bbox"] for label in labels], np.float64).reshape(-1, 4)
    nothing = [0.0] * 3 * keypoints
    points = [label.get("keypoints", nothing) if keypoints else nothing for label in labels]
    return ImageLabels(
        np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]),
        np.array([label["category_id"] for label in labels], np.int64),
        np.array([bool(label["iscrowd"]) for label in labels], np.bool_),
        np.array(points, np.float64).reshape(len(labels), keypoints, 3),
    )


def check_images(ground_truth: GroundTruth) -> None:
    """Raise :class:`EvaluationError` where there is nothing to evaluate, or an image is missing."""
    if not ground_truth.images:
        raise EvaluationError("the labels name no image, so there is nothing to evaluate.")
    missing = [str(image.path) for image in ground_truth.images if not image.path.is_file()]
    if missing:
        raise EvaluationError(
            f"{len(missing)} of {len(ground_truth.images)} images are missing: {listed(missing)}. "
            "--images must name the directory that the labels' file names start from."
        )


def listed(names: Sequence[str]) -> str:
    """Some names, and how many there are when that is not all."""
    some = ", ".join(name[:100] for name in names[:_SHOWN])
    return some if len(names) <= _SHOWN else f"{some}, ... ({len(names)} in all)"
