"""COCO files: boxes and, where wanted, keypoints."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model_export.graph.normalization import Normalization
from training.data.image_files import NO_PIXELS, DatasetError, Images, check_boxes, image_size
from training.data.sample import AnnotatedImage, FloatArray, Pixels

__all__ = ["CocoSplit", "DatasetError", "network_input", "read_coco_split"]


@dataclass(frozen=True)
class CocoSplit:
    """One COCO file and its images, listed and checked.

    Attributes:
        images: the images with class ids 0, 1, ... in the order of ``category_ids``.
        image_ids: the file's id of each image.
        category_ids: the file's id of each class.
        annotation_file: where it was read from.
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
) -> CocoSplit:
    """Read a COCO file whose categories are exactly ``classes``.

    With ``keypoints`` every category must have those keypoints, in that order; objects without any
    have none labelled. Boxes of no area are skipped, because published data has some; everything
    else that does not fit (missing image, unknown id, wrong size, box outside) raises
    :class:`DatasetError`.
    """
    document = _read_document(annotation_file)
    category_ids = {entry["name"]: int(entry["id"]) for entry in document["categories"]}
    if set(category_ids) != set(classes):
        raise DatasetError(
            f"{annotation_file}: categories are {sorted(category_ids)}, expected {sorted(classes)}"
        )
    for entry in document["categories"]:
        if keypoints and list(entry.get("keypoints", ())) != list(keypoints):
            raise DatasetError(
                f"{annotation_file}: {entry['name']} has keypoints {entry.get('keypoints')}, "
                f"expected {list(keypoints)}"
            )
    class_of = {category_ids[name]: index for index, name in enumerate(classes)}
    objects: dict[int, list[Mapping[str, Any]]] = {e["id"]: [] for e in document["images"]}
    for entry in document["annotations"]:
        _check(entry, objects, class_of, len(keypoints), annotation_file)
        if min(entry["bbox"][2:]) > 0:
            objects[entry["image_id"]].append(entry)
    files = [
        _annotate(entry, image_dir, objects[entry["id"]], class_of, len(keypoints), annotation_file)
        for entry in document["images"]
    ]
    return CocoSplit(Images(files), tuple(objects), tuple(class_of), annotation_file)


def _read_document(annotation_file: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(annotation_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{annotation_file}: not readable as JSON: {error}") from error
    missing = {"images", "annotations", "categories"} - set(document)
    if missing:
        raise DatasetError(
            f"{annotation_file}: no {', '.join(sorted(missing))}: not COCO instances"
        )
    if not document["images"]:
        raise DatasetError(f"{annotation_file}: lists no images")
    return document  # type: ignore[no-any-return]


def _check(
    entry: Mapping[str, Any],
    images: Mapping[int, object],
    class_of: Mapping[int, int],
    keypoint_count: int,
    annotation_file: Path,
) -> None:
    where = f"{annotation_file}: annotation {entry['id']}"
    if entry["image_id"] not in images:
        raise DatasetError(f"{where}: image {entry['image_id']} is not listed under images")
    if entry["category_id"] not in class_of:
        raise DatasetError(f"{where}: category {entry['category_id']} is not listed")
    if len(entry["bbox"]) != 4 or not np.isfinite(entry["bbox"]).all():
        raise DatasetError(f"{where}: bbox {entry['bbox']} is not four finite numbers")
    keypoints = entry.get("keypoints")
    if (
        keypoint_count
        and keypoints
        and (len(keypoints) != 3 * keypoint_count or not np.isfinite(keypoints).all())
    ):
        raise DatasetError(f"{where}: keypoints are not {3 * keypoint_count} finite numbers")


def _annotate(
    entry: Mapping[str, Any],
    image_dir: Path,
    objects: Sequence[Mapping[str, Any]],
    class_of: Mapping[int, int],
    keypoint_count: int,
    annotation_file: Path,
) -> tuple[Path, AnnotatedImage]:
    path = image_dir / entry["file_name"]
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
    poses = _poses(objects, keypoint_count) if keypoint_count else None
    return path, AnnotatedImage(NO_PIXELS, boxes, class_ids, keypoints=poses)


def _poses(objects: Sequence[Mapping[str, Any]], keypoint_count: int) -> FloatArray:
    unlabelled = [0.0] * (3 * keypoint_count)
    rows = [entry.get("keypoints") or unlabelled for entry in objects]
    return np.asarray(rows, np.float32).reshape(-1, keypoint_count, 3)


def network_input(pixels: Pixels, normalization: Normalization) -> Tensor:
    """Normalise uint8 (H, W, 3) RGB pixels to float32 (3, H, W) in the network's channel order."""
    ordered = pixels[..., ::-1] if normalization.channel_order == "bgr" else pixels
    mean = np.asarray(normalization.mean, np.float32)
    scaled = (ordered / np.float32(255) - mean) / np.asarray(normalization.std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1), np.float32))
