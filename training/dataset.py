"""Pictures for training: COCO-format splits and freshly rendered smears, as network inputs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from model_export.architectures import OUTPUT_STRIDE
from model_export.normalization import Normalization
from training.annotated_image import AnnotatedImage, Pixels
from training.augmentation import AugmentationRanges, random_view
from training.blood_smears import render_smear
from training.targets import center_targets

MAX_OBJECTS = 128


class DatasetError(ValueError):
    """A data set file that cannot be trained on; the message names the file and the entry."""


@dataclass(frozen=True)
class CocoSplit:
    """One COCO instances file and its pictures, read and checked.

    Attributes:
        images: the pictures with class ids 0, 1, ... in the order of ``category_ids``.
        image_ids: the file's id of each picture.
        category_ids: the file's id of each class.
        annotation_file: where it was read from.
    """

    images: tuple[AnnotatedImage, ...]
    image_ids: tuple[int, ...]
    category_ids: tuple[int, ...]
    annotation_file: Path


def read_coco_split(annotation_file: Path, image_dir: Path, classes: Sequence[str]) -> CocoSplit:
    """Read a COCO instances file whose categories are exactly ``classes``.

    Boxes of no area are skipped, because published data has some; everything else that does not
    fit (missing picture, unknown id, wrong size, box outside) raises :class:`DatasetError`.
    """
    document = _read_document(annotation_file)
    category_ids = {entry["name"]: int(entry["id"]) for entry in document["categories"]}
    if set(category_ids) != set(classes):
        raise DatasetError(
            f"{annotation_file}: categories are {sorted(category_ids)}, expected {sorted(classes)}"
        )
    class_of = {category_ids[name]: index for index, name in enumerate(classes)}
    rows: dict[int, list[tuple[list[float], int]]] = {e["id"]: [] for e in document["images"]}
    for entry in document["annotations"]:
        where = f"{annotation_file}: annotation {entry['id']}"
        if entry["image_id"] not in rows:
            raise DatasetError(f"{where}: image {entry['image_id']} is not listed under images")
        if entry["category_id"] not in class_of:
            raise DatasetError(f"{where}: category {entry['category_id']} is not listed")
        if len(entry["bbox"]) != 4 or not np.isfinite(entry["bbox"]).all():
            raise DatasetError(f"{where}: bbox {entry['bbox']} is not four finite numbers")
        if min(entry["bbox"][2:]) > 0:
            rows[entry["image_id"]].append((entry["bbox"], class_of[entry["category_id"]]))
    images = tuple(
        _annotate(entry, image_dir, rows[entry["id"]], annotation_file)
        for entry in document["images"]
    )
    return CocoSplit(images, tuple(rows), tuple(class_of), annotation_file)


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


def _annotate(
    entry: Mapping[str, Any],
    image_dir: Path,
    rows: Sequence[tuple[list[float], int]],
    annotation_file: Path,
) -> AnnotatedImage:
    path = image_dir / entry["file_name"]
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise DatasetError(f"{annotation_file}: picture {path} is missing or not an image")
    height, width = bgr.shape[:2]
    if (width, height) != (entry["width"], entry["height"]):
        raise DatasetError(
            f"{path}: is {width}x{height}, but {annotation_file} says"
            f" {entry['width']}x{entry['height']}"
        )
    boxes = np.asarray([box for box, _ in rows], np.float32).reshape(-1, 4)
    outside = (boxes[:, :2] >= (width, height)).any(1) | (boxes[:, :2] + boxes[:, 2:] <= 0).any(1)
    if outside.any():
        raise DatasetError(f"{path}: box {boxes[outside][0].tolist()} lies outside the picture")
    class_ids = np.asarray([class_id for _, class_id in rows], np.int64)
    pixels = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
    return AnnotatedImage(pixels, boxes, class_ids)


def network_input(pixels: Pixels, normalization: Normalization) -> Tensor:
    """Normalise uint8 (H, W, 3) RGB pixels to float32 (3, H, W) in the network's channel order."""
    ordered = pixels[..., ::-1] if normalization.channel_order == "bgr" else pixels
    mean = np.asarray(normalization.mean, np.float32)
    scaled = (ordered / np.float32(255) - mean) / np.asarray(normalization.std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1), np.float32))


@dataclass(frozen=True)
class ViewSettings:
    """How pictures become training samples."""

    crop: int
    base_scale: float
    ranges: AugmentationRanges
    normalization: Normalization
    num_classes: int


class EpochViews(Dataset[dict[str, Tensor]]):
    """The samples of one epoch: every real picture some times, then new renders.

    Every sample depends on (seed, epoch, index) alone, so a resumed run sees the same pictures as
    an uninterrupted one, whatever the number of loader processes.
    """

    def __init__(
        self,
        images: Sequence[AnnotatedImage],
        *,
        repeats: int,
        rendered: int,
        settings: ViewSettings,
        seed: int,
        epoch: int,
    ) -> None:
        self._images = images
        self._real = repeats * len(images)
        self._length = self._real + rendered
        self._settings = settings
        self._key = (seed, epoch)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return ``image`` float32 (3, crop, crop) and the fields of ``CenterTargets``."""
        settings = self._settings
        rng = np.random.default_rng((*self._key, index))
        image = self._images[index % len(self._images)] if index < self._real else render_smear(rng)
        view = random_view(rng, image, settings.crop, settings.base_scale, settings.ranges)
        targets = center_targets(
            view.boxes_xywh,
            view.class_ids,
            num_classes=settings.num_classes,
            map_height=settings.crop // OUTPUT_STRIDE,
            map_width=settings.crop // OUTPUT_STRIDE,
            stride=OUTPUT_STRIDE,
            max_objects=MAX_OBJECTS,
        )
        sample = {name: torch.from_numpy(value) for name, value in asdict(targets).items()}
        return {"image": network_input(view.pixels, settings.normalization), **sample}
