"""COCO data sets for training: boxes and, optionally, keypoints."""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labels.coco import CocoDataset, check_annotations, read_coco
from labels.errors import DatasetError
from labels.image_files import image_path
from model_export.graph.normalization import Normalization
from training.data.extreme_points import extreme_points_of
from training.data.image_files import NO_PIXELS, Images, check_boxes, image_size
from training.data.sample import AnnotatedImage, FloatArray, Pixels

_PointsOf = Callable[[Sequence[Mapping[str, Any]]], FloatArray]
"""Returns keypoints, float32 (N, J, 3), of annotations."""


@dataclass(frozen=True)
class CocoSplit:
    """One COCO file and its images, listed and checked.

    Attributes:
        images: the images with class ids 0, 1, ... in the order of ``category_ids``.
        image_ids: the file's id of each image.
        category_ids: the file's id of each class.
        annotation_file: the path of the file.
    """

    images: Images
    image_ids: tuple[int, ...]
    category_ids: tuple[int, ...]
    annotation_file: Path


def read_coco_split(
    annotation_file: Path,
    image_dir: Path,
    classes: Sequence[str],
    keypoints: Sequence[str] = (),
    keypoint_classes: Sequence[str] = (),
    *,
    extreme_points: bool = False,
) -> CocoSplit:
    """Read a COCO file whose annotations have the categories ``classes`` and no others.

    With ``keypoints``, every category, or those of ``keypoint_classes``, must have those keypoints,
    in that order; objects without keypoints have none labelled. With ``extreme_points``, the
    keypoints are those of :func:`~training.data.extreme_points.extreme_points_of`, and crowds are
    skipped. Boxes without an area are skipped, because published data has some; a missing image, a
    wrong image size, a box outside its image and all files that :mod:`labels.coco` refuses raise
    :class:`DatasetError`.
    """
    dataset = read_coco(annotation_file)
    if not dataset.images:
        raise DatasetError(f"{annotation_file}: lists no images")
    _check_categories(dataset, classes)
    with_keypoints = keypoint_classes or classes
    _check_named_keypoints(dataset, with_keypoints, keypoints)
    check_annotations(dataset)
    if unexpected := set(annotated_categories(dataset)) - set(classes):
        raise DatasetError(
            f"{annotation_file}: objects have the categories {sorted(unexpected)}, expected "
            f"{sorted(classes)}"
        )
    category_ids = {entry["name"]: int(entry["id"]) for entry in dataset.categories}
    class_of = {category_ids[name]: index for index, name in enumerate(classes)}
    objects: dict[int, list[Mapping[str, Any]]] = {image["id"]: [] for image in dataset.images}
    for entry in dataset.annotations:
        _check_keypoints(entry, len(keypoints), annotation_file)
        is_skipped = extreme_points and entry.get("iscrowd")
        if min(entry["bbox"][2:]) > 0 and not is_skipped:
            objects[entry["image_id"]].append(entry)
    points_of: _PointsOf | None = None
    if extreme_points:
        points_of = partial(_extreme_points, annotation_file=annotation_file)
    elif keypoints:
        ids = {category_ids[name] for name in with_keypoints}
        points_of = partial(_poses, keypoint_count=len(keypoints), category_ids=ids)
    files = [
        _annotate(image, image_dir, objects[image["id"]], class_of, points_of, annotation_file)
        for image in dataset.images
    ]
    return CocoSplit(Images(files), tuple(objects), tuple(class_of), annotation_file)


def annotated_categories(dataset: CocoDataset) -> tuple[str, ...]:
    """Return the names of the categories that have annotations, by increasing id.

    Annotation tools also export categories that only group others.
    """
    used = {annotation["category_id"] for annotation in dataset.annotations}
    listed = sorted(dataset.categories, key=lambda entry: int(entry["id"]))
    return tuple(entry["name"] for entry in listed if entry["id"] in used)


def _check_categories(dataset: CocoDataset, classes: Sequence[str]) -> None:
    names = sorted(entry["name"] for entry in dataset.categories)
    if not set(classes) <= set(names):
        raise DatasetError(f"{dataset.path}: categories are {names}, expected {sorted(classes)}")


def _check_named_keypoints(
    dataset: CocoDataset, classes: Sequence[str], keypoints: Sequence[str]
) -> None:
    for entry in dataset.categories if keypoints else ():
        has_keypoints = entry["name"] in classes
        if has_keypoints and list(entry.get("keypoints", ())) != list(keypoints):
            raise DatasetError(
                f"{dataset.path}: {entry['name']} has keypoints {entry.get('keypoints')}, "
                f"expected {list(keypoints)}"
            )


def _check_keypoints(entry: Mapping[str, Any], count: int, annotation_file: Path) -> None:
    keypoints = entry.get("keypoints")
    if count and keypoints and (len(keypoints) != 3 * count or not np.isfinite(keypoints).all()):
        raise DatasetError(
            f"{annotation_file}: annotation {entry.get('id')}: keypoints are not {3 * count} "
            "finite numbers"
        )


def _annotate(
    entry: Mapping[str, Any],
    image_dir: Path,
    objects: Sequence[Mapping[str, Any]],
    class_of: Mapping[int, int],
    points_of: _PointsOf | None,
    annotation_file: Path,
) -> tuple[Path, AnnotatedImage]:
    path = image_path(image_dir, entry["file_name"])
    try:
        width, height = image_size(path)
    except DatasetError as error:
        raise DatasetError(f"{annotation_file}: {error}") from error
    if (width, height) != (entry["width"], entry["height"]):
        raise DatasetError(
            f"{path}: is {width}x{height}, but {annotation_file} says"
            f" {entry['width']}x{entry['height']}"
        )
    boxes = np.asarray([box["bbox"] for box in objects], np.float32).reshape(-1, 4)
    check_boxes(path, boxes, (width, height))
    class_ids = np.asarray([class_of[box["category_id"]] for box in objects], np.int64)
    points = None if points_of is None else points_of(objects)
    return path, AnnotatedImage(NO_PIXELS, boxes, class_ids, keypoints=points)


def _extreme_points(objects: Sequence[Mapping[str, Any]], annotation_file: Path) -> FloatArray:
    points = np.ones((len(objects), 4, 3), np.float32)
    for index, entry in enumerate(objects):
        try:
            points[index, :, :2] = extreme_points_of(entry)
        except DatasetError as error:
            raise DatasetError(
                f"{annotation_file}: annotation {entry.get('id')}: {error}"
            ) from error
    return points


def _poses(
    objects: Sequence[Mapping[str, Any]], keypoint_count: int, category_ids: Container[int]
) -> FloatArray:
    """Return keypoints; ``category_ids``: the categories that have some."""
    unlabelled, none = [0.0] * (3 * keypoint_count), [np.nan] * (3 * keypoint_count)
    rows = [
        entry.get("keypoints") or unlabelled if entry["category_id"] in category_ids else none
        for entry in objects
    ]
    return np.asarray(rows, np.float32).reshape(-1, keypoint_count, 3)


def network_input(pixels: Pixels, normalization: Normalization) -> Tensor:
    """Normalize uint8 (H, W, 3) RGB pixels to float32 (3, H, W) in the network's channel order."""
    ordered = pixels[..., ::-1] if normalization.channel_order == "bgr" else pixels
    mean = np.asarray(normalization.mean, np.float32)
    scaled = (ordered / np.float32(255) - mean) / np.asarray(normalization.std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1), np.float32))
