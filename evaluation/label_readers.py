"""Conversion of COCO, Pascal VOC and KITTI labels to :class:`GroundTruth`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.errors import EvaluationError
from evaluation.ground_truth import GroundTruth, LabelledImage
from labels.coco import check_annotations, read_coco
from labels.errors import DatasetError
from labels.image_files import IMAGE_SUFFIXES, find_image, image_path
from labels.kitti import DONT_CARE, KittiLabels, read_kitti, read_projection
from labels.voc import read_voc


def read_ground_truth(annotations: Path, image_dir: Path) -> GroundTruth:
    """Read a COCO file, or a directory of Pascal VOC ``.xml`` or KITTI ``.txt`` files.

    Raises :class:`EvaluationError` for labels that cannot be read.
    """
    try:
        if annotations.is_file():
            return _from_coco(annotations, image_dir)
        if any(annotations.glob("*.xml")):
            return _from_voc(annotations, image_dir)
        if any(annotations.glob("*.txt")):
            return _from_kitti(annotations, image_dir)
    except DatasetError as error:
        raise EvaluationError(f"{error}.") from error
    except (OSError, TypeError, ValueError) as error:
        raise EvaluationError(f"{annotations} cannot be read: {error}.") from error
    raise EvaluationError(
        f"{annotations} holds no labels. Name a COCO JSON file, or a directory of Pascal VOC .xml "
        "or KITTI .txt files."
    )


def _from_coco(path: Path, image_dir: Path) -> GroundTruth:
    dataset = read_coco(path)
    check_annotations(dataset)
    images = sorted(dataset.images, key=lambda image: int(image["id"]))
    return GroundTruth(
        [LabelledImage(image["id"], image_path(image_dir, image["file_name"])) for image in images],
        {
            "info": {},
            "images": images,
            "annotations": _with_ids([_complete(label) for label in dataset.annotations]),
            "categories": list(dataset.categories),
        },
    )


def _complete(label: Mapping[str, Any]) -> dict[str, Any]:
    """Add the fields that pycocotools reads and the file may omit."""
    width, height = label["bbox"][2:]
    complete = {"area": width * height, "iscrowd": 0, **label}
    if "keypoints" in complete:
        complete.setdefault("num_keypoints", sum(v > 0 for v in complete["keypoints"][2::3]))
    return complete


def _with_ids(labels: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Number annotations from 1 unless their ids are unique and none is 0.

    pycocotools treats an object with the id 0 as never matched.
    """
    ids = {label.get("id", 0) for label in labels}
    if len(ids) == len(labels) and 0 not in ids:
        return list(labels)
    return [{**label, "id": number} for number, label in enumerate(labels, start=1)]


def _from_voc(directory: Path, image_dir: Path) -> GroundTruth:
    """Read a VOC directory; difficult objects become crowds, which do not count as missed."""
    images, coco_images, labels = [], [], []
    categories: dict[str, int] = {}
    for image_id, path in enumerate(sorted(directory.glob("*.xml")), start=1):
        annotation = read_voc(path)
        file_name = annotation.file_name or f"{path.stem}.jpg"
        images.append(LabelledImage(image_id, image_dir / file_name))
        coco_images.append(
            {
                "id": image_id,
                "file_name": file_name,
                "width": annotation.width,
                "height": annotation.height,
            }
        )
        for entry in annotation.objects:
            category_id = categories.setdefault(entry.name, len(categories) + 1)
            labels.append(_coco_label(image_id, category_id, entry.box_xyxy, entry.is_difficult))
    return GroundTruth(images, _coco_dataset(coco_images, labels, categories))


def _from_kitti(directory: Path, image_dir: Path) -> GroundTruth:
    """Read a KITTI directory; an image has the stem of its label file.

    For COCO's metrics, ``DontCare`` regions become crowds of every class.
    """
    images: list[LabelledImage] = []
    boxes_3d: dict[int, KittiLabels] = {}
    for image_id, path in enumerate(sorted(directory.glob("*.txt")), start=1):
        boxes_3d[image_id] = read_kitti(path)
        image = find_image(image_dir, path.stem) or image_dir / f"{path.stem}{IMAGE_SUFFIXES[0]}"
        calibration = directory.parent / "calib" / path.name
        projection = read_projection(calibration) if calibration.is_file() else None
        images.append(LabelledImage(image_id, image, projection))
    names = sorted({name for labels in boxes_3d.values() for name in labels.types} - {DONT_CARE})
    categories = {name: number for number, name in enumerate(names, start=1)}
    labels = [
        _coco_label(image_id, category_id, box, name == DONT_CARE)
        for image_id, image_labels in boxes_3d.items()
        for name, box in zip(image_labels.types, image_labels.boxes_xyxy.tolist(), strict=True)
        for category_id in (categories.values() if name == DONT_CARE else [categories[name]])
    ]
    coco_images = [{"id": image.image_id, "file_name": image.path.name} for image in images]
    coco = _coco_dataset(coco_images, labels, categories)
    return GroundTruth(images, coco, boxes_3d, ignores_unknown_classes=True)


def _coco_label(
    image_id: int, category_id: int, box_xyxy: Sequence[float], is_crowd: bool
) -> dict[str, Any]:
    x1, y1, x2, y2 = box_xyxy
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": int(is_crowd),
    }


def _coco_dataset(
    images: Sequence[dict[str, Any]],
    labels: Sequence[dict[str, Any]],
    categories: Mapping[str, int],
) -> dict[str, Any]:
    return {
        "info": {},
        "images": list(images),
        "annotations": _with_ids(labels),
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }
