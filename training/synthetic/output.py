"""Command-line arguments, image files and COCO labels of the renderers."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2

from training.data.sample import AnnotatedImage, Pixels

JPEG_QUALITY = 90


def parse_args(
    module: str,
    description: str | None,
    argv: Sequence[str] | None,
    default_format: Literal["jpg", "png"],
) -> argparse.Namespace:
    """Parse ``output``, ``count``, ``seed`` and ``format`` of ``python -m module``."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--format", choices=("jpg", "png"), default=default_format)
    return parser.parse_args(argv)


def write_image(path: Path, pixels: Pixels) -> None:
    """Write RGB ``pixels`` in the format of the file suffix. Raises ``OSError``."""
    params = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if path.suffix == ".jpg" else []
    if not cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), params):
        raise OSError(f"could not write {path}")


def coco_document(
    description: str,
    categories: Sequence[Mapping[str, Any]],
    images: Sequence[AnnotatedImage],
    file_names: Sequence[str],
    areas: Sequence[Sequence[float]],
) -> dict[str, Any]:
    """Return the labels of images as a COCO document; all ids are numbered from 1.

    ``areas`` are those of the objects of each image, in square pixels.
    """
    image_entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(images, start=1):
        height, width = image.pixels.shape[:2]
        name = file_names[image_id - 1]
        image_entries.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for index, area in enumerate(areas[image_id - 1]):
            annotation: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": int(image.class_ids[index]) + 1,
                "bbox": image.boxes_xywh[index].tolist(),
                "area": area,
                "iscrowd": 0,
            }
            if image.keypoints is not None:
                keypoints = image.keypoints[index]
                annotation["keypoints"] = keypoints.round(2).ravel().tolist()
                annotation["num_keypoints"] = int((keypoints[:, 2] > 0).sum())
            annotations.append(annotation)
    return {
        "info": {"description": description},
        "images": image_entries,
        "annotations": annotations,
        "categories": list(categories),
    }


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write ``document`` as indented JSON."""
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
