"""Labelled images in one structure for all label formats."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import EvaluationError
from labels.kitti import KittiLabels

_MAX_NAMES = 5
"""Names that an error message lists; it counts the rest."""


@dataclass(frozen=True)
class LabelledImage:
    """One image; ``projection`` is its camera matrix (3, 4), row by row, where it is known."""

    image_id: int
    path: Path
    projection: tuple[float, ...] | None = None


@dataclass(frozen=True)
class GroundTruth:
    """Images and their labels as a COCO dataset.

    Attributes:
        images: in the order of their ids.
        coco: ``images``, ``annotations`` and ``categories``; each annotation has ``bbox``, ``area``
            and ``iscrowd``.
        boxes_3d: labels by image id; None for formats without 3D boxes.
        ignores_unknown_classes: skip labels of classes that the model does not have, instead of
            raising an error.
    """

    images: Sequence[LabelledImage]
    coco: dict[str, Any]
    boxes_3d: Mapping[int, KittiLabels] | None = None
    ignores_unknown_classes: bool = False


@dataclass(frozen=True)
class ImageLabels:
    """The labels of one image as arrays.

    Attributes:
        boxes_xyxy: float64 (n, 4) in pixels.
        class_ids: int64 (n,), class ids of the model.
        is_crowd: bool (n,).
        keypoints: float64 (n, keypoints, 3), x, y, visibility; (n, 0, 3) for labels without them.
    """

    boxes_xyxy: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    is_crowd: NDArray[np.bool_]
    keypoints: NDArray[np.float64]


def map_to_classes(
    ground_truth: GroundTruth, classes: Sequence[str], *, with_masks: bool = False
) -> GroundTruth:
    """Replace category ids by the class ids of a model with these ``classes``.

    A category is mapped to the class of the same name; a category whose name is a number, to the
    class with that index. Segmentations are kept only ``with_masks``. Raises
    :class:`EvaluationError` for labelled categories that the model does not have.
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
    if not known or (unknown and not ground_truth.ignores_unknown_classes):
        names = unknown or [category["name"] for category in ground_truth.coco["categories"]]
        raise EvaluationError(
            f"the labels have the classes {_join_names(names)}, which the model does not have; its "
            f"classes are {_join_names(classes)}. Rename the categories, or use class indices as "
            "names: 0 is the model's first class."
        )
    if len(set(known.values())) < len(known):
        raise EvaluationError("two categories of the labels map to the same class of the model.")
    coco = dict(ground_truth.coco)
    coco["categories"] = [
        {**category, "id": known[category["id"]], "name": classes[known[category["id"]]]}
        for category in ground_truth.coco["categories"]
        if category["id"] in known
    ]
    coco["annotations"] = [
        _with_category(label, known[label["category_id"]], with_masks)
        for label in ground_truth.coco["annotations"]
        if label["category_id"] in known
    ]
    return replace(ground_truth, coco=coco)


def _with_category(label: Mapping[str, Any], category_id: int, with_masks: bool) -> dict[str, Any]:
    mapped = {**label, "category_id": category_id}
    if not with_masks:  # segmentations need most of the memory of COCO's files
        mapped.pop("segmentation", None)
    return mapped


def labels_by_image(ground_truth: GroundTruth) -> list[ImageLabels]:
    """Return the labels of each image, in the order of the images; see :func:`map_to_classes`."""
    counts = {
        len(label["keypoints"])
        for label in ground_truth.coco["annotations"]
        if "keypoints" in label
    }
    keypoint_count = counts.pop() // 3 if len(counts) == 1 else 0
    by_image = annotations_by_image(ground_truth)
    return [_as_arrays(annotations, keypoint_count) for annotations in by_image]


def annotations_by_image(ground_truth: GroundTruth) -> list[list[dict[str, Any]]]:
    """Return the annotations of each image, in the order of the images."""
    by_image: dict[int, list[dict[str, Any]]] = {
        image.image_id: [] for image in ground_truth.images
    }
    for annotation in ground_truth.coco["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    return list(by_image.values())


def _as_arrays(labels: Sequence[Mapping[str, Any]], keypoint_count: int) -> ImageLabels:
    boxes = np.array([label["bbox"] for label in labels], np.float64).reshape(-1, 4)
    unlabelled = [0.0] * 3 * keypoint_count
    keypoints = [
        label.get("keypoints", unlabelled) if keypoint_count else unlabelled for label in labels
    ]
    return ImageLabels(
        np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]),
        np.array([label["category_id"] for label in labels], np.int64),
        np.array([bool(label["iscrowd"]) for label in labels], np.bool_),
        np.array(keypoints, np.float64).reshape(len(labels), keypoint_count, 3),
    )


def check_images(ground_truth: GroundTruth) -> None:
    """Raise :class:`EvaluationError` if the labels list no images, or an image file is missing."""
    if not ground_truth.images:
        raise EvaluationError("the labels list no images, so there is nothing to evaluate.")
    missing = [str(image.path) for image in ground_truth.images if not image.path.is_file()]
    if missing:
        raise EvaluationError(
            f"{len(missing)} of {len(ground_truth.images)} images are missing: "
            f"{_join_names(missing)}. --images must be the directory that the file names in the "
            "labels are relative to."
        )


def _join_names(names: Sequence[str]) -> str:
    """List the first names, and the total count where there are more."""
    first = ", ".join(name[:100] for name in names[:_MAX_NAMES])
    return first if len(names) <= _MAX_NAMES else f"{first}, ... ({len(names)} in total)"
