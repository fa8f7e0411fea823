"""Labels from COCO files, Pascal VOC directories and KITTI directories."""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.errors import EvaluationError
from evaluation.ground_truth import GroundTruth, LabelledImage
from evaluation.kitti_labels import read_kitti


def read_ground_truth(annotations: Path, image_dir: Path) -> GroundTruth:
    """Read labels: a COCO file, or a directory of VOC's ``.xml`` or KITTI's ``.txt`` files.

    Raises :class:`EvaluationError` for labels that cannot be read.
    """
    try:
        if annotations.is_file():
            return _read_coco(annotations, image_dir)
        if any(annotations.glob("*.xml")):
            return _read_voc(annotations, image_dir)
        if any(annotations.glob("*.txt")):
            return read_kitti(annotations, image_dir)
    except (OSError, ValueError, KeyError, TypeError, ElementTree.ParseError) as error:
        if isinstance(error, EvaluationError):
            raise
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise EvaluationError(f"{annotations} cannot be read: {what}.") from error
    raise EvaluationError(
        f"{annotations} holds no labels. Name a COCO JSON file, or a directory of Pascal VOC's "
        ".xml or KITTI's .txt files."
    )


def _read_coco(path: Path, image_dir: Path) -> GroundTruth:
    facts = json.loads(path.read_bytes())
    if not isinstance(facts, dict) or not {"images", "annotations", "categories"} <= facts.keys():
        raise EvaluationError(f"{path} is no COCO file: images, annotations or categories lack.")
    found = sorted(facts["images"], key=lambda image: int(image["id"]))
    known = {image["id"] for image in found}
    if len(known) < len(found):
        raise EvaluationError(f"{path}: two images have the same id.")
    categories = {category["id"] for category in facts["categories"]}
    for what, ids in (("image", known), ("category", categories)):
        strays = sum(label[f"{what}_id"] not in ids for label in facts["annotations"])
        if strays:
            raise EvaluationError(f"{path}: {strays} annotations belong to no {what} of the file.")
    return GroundTruth(
        [LabelledImage(image["id"], image_dir / image["file_name"]) for image in found],
        {
            "info": {},
            "images": found,
            "annotations": _complete(facts["annotations"]),
            "categories": [
                {**category, "name": str(category["name"])} for category in facts["categories"]
            ],
        },
    )


def _complete(labels: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Annotations with every field that pycocotools reads."""
    complete = []
    for label in labels:
        width, height = label["bbox"][2:]
        full = {"area": width * height, "iscrowd": 0, **label}
        full.pop("segmentation", None)  # boxes are evaluated; polygons are most of COCO's memory
        if "keypoints" in full:
            full.setdefault("num_keypoints", sum(v > 0 for v in full["keypoints"][2::3]))
        complete.append(full)
    return with_ids(complete)


def with_ids(labels: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Number annotations from 1 unless their ids are good.

    pycocotools takes an object with the id 0 for one that was never found.
    """
    ids = {label.get("id", 0) for label in labels}
    if len(ids) == len(labels) and 0 not in ids:
        return list(labels)
    return [{**label, "id": number} for number, label in enumerate(labels, start=1)]


def _read_voc(directory: Path, image_dir: Path) -> GroundTruth:
    """Pascal VOC: pixels count from 1 and both ends belong to the box; difficult ones as crowds.

    Neither finding nor missing a difficult object counts.
    """
    images, coco_images, labels = [], [], []
    categories: dict[str, int] = {}
    for image_id, path in enumerate(sorted(directory.glob("*.xml")), start=1):
        root = ElementTree.parse(path).getroot()
        file_name = root.findtext("filename") or f"{path.stem}.jpg"
        images.append(LabelledImage(image_id, image_dir / file_name))
        coco_images.append(
            {
                "id": image_id,
                "file_name": file_name,
                "width": int(root.findtext("size/width", "0")),
                "height": int(root.findtext("size/height", "0")),
            }
        )
        for entry in root.iter("object"):
            name = (entry.findtext("name") or "").strip()
            x1, y1, x2, y2 = (
                float(entry.findtext(f"bndbox/{side}", "")) - shift
                for side, shift in (("xmin", 1), ("ymin", 1), ("xmax", 0), ("ymax", 0))
            )
            labels.append(
                {
                    "image_id": image_id,
                    "category_id": categories.setdefault(name, len(categories) + 1),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(entry.findtext("difficult", "0")),
                }
            )
    return GroundTruth(
        images,
        {
            "info": {},
            "images": coco_images,
            "annotations": with_ids(labels),
            "categories": [{"id": i, "name": name} for name, i in categories.items()],
        },
    )
