"""Measure the effect of decoding JPEGs at 1/2 or 1/4 of their size on detections.

    python -m benchmarks.scaled_decoding --package models/blood_cells --sheet 2 3 \
        --annotations data/bccd/test.json --images data/bccd/images

Enlarged photos would have no detail to lose. Photos are therefore placed side by side, pixel for
pixel, on sheets of N x N, with all their objects: a large image that is as sharp as the photos.
Each sheet is evaluated at full and at reduced size, and for comparison at full size from a JPEG of
lower quality, and at full size after a shift by one pixel. Prints Markdown: AP (COCO), and the
fraction of the detections with a score of at least 0.3 that were also detected in the full-size
sheet (same class, IoU of at least 0.7).
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from evaluation.detections import ImageDetections, to_coco_results
from evaluation.ground_truth import map_to_classes
from evaluation.label_readers import read_ground_truth
from evaluation.local_model import LocalModel
from evaluation.metrics.coco import box_scores
from evaluation.report import markdown_row, markdown_table
from labels.matching import match_boxes

MIN_SCORE, MIN_IOU = 0.3, 0.7


@dataclass(frozen=True)
class Variant:
    """JPEG quality, decoding scale and shift of a sheet."""

    name: str
    reduction: int = 1
    quality: int = 90
    shift_px: int = 0


VARIANTS = (
    Variant("full size"),
    Variant("1/2", reduction=2),
    Variant("1/4", reduction=4),
    Variant("full size, quality 75 instead of 90", quality=75),
    Variant("full size, shifted by one pixel", shift_px=1),
)


COLUMNS = (
    *("sheet", "sheets", "pixels per input pixel", "decoded"),
    *("pixels left", "AP", "AP50", "same"),
)


def make_sheets(
    coco: dict[str, Any], images: Path, side: int, shuffles: int, variant: Variant, output: Path
) -> Path:
    """Write sheets of ``side`` x ``side`` photos, each once per shuffle, and their COCO file."""
    width, height = 640, 480
    photos = [
        photo for photo in coco["images"] if photo["width"] <= width and photo["height"] <= height
    ]
    objects: dict[int, list[dict[str, Any]]] = {photo["id"]: [] for photo in photos}
    for label in coco["annotations"]:
        objects.get(label["image_id"], []).append(label)
    merged: dict[str, Any] = {"categories": coco["categories"], "images": [], "annotations": []}
    rng = np.random.default_rng(0)
    for _ in range(shuffles):
        order = rng.permutation(len(photos))
        for start in range(0, len(order) - side**2 + 1, side**2):
            sheet = Image.new("RGB", (side * width, side * height))
            sheet_id = len(merged["images"]) + 1
            name = f"{sheet_id}.jpg"
            for cell, index in enumerate(order[start : start + side**2]):
                left, top = (
                    cell % side * width + variant.shift_px,
                    cell // side * height + variant.shift_px,
                )
                with Image.open(images / photos[index]["file_name"]) as photo:
                    sheet.paste(photo.convert("RGB"), (left, top))
                for label in objects[photos[index]["id"]]:
                    x, y, *size = label["bbox"]
                    merged["annotations"].append(
                        {key: label[key] for key in ("category_id", "area", "iscrowd")}
                        | {"id": len(merged["annotations"]) + 1, "image_id": sheet_id}
                        | {"bbox": [x + left, y + top, *size]}
                    )
            merged["images"].append({"id": sheet_id, "file_name": name})
            sheet.save(output / name, quality=variant.quality)
    path = output / "sheets.json"
    path.write_text(json.dumps(merged))
    return path


def detect(
    package: Path, annotations: Path, reduction: int
) -> tuple[Sequence[ImageDetections], float, float]:
    """Return detections, AP and AP50 of all sheets, with JPEGs decoded at 1 / ``reduction``."""
    model = LocalModel(package)
    ground_truth = map_to_classes(
        read_ground_truth(annotations, annotations.parent), model.model.classes
    )
    with patch("service.detector.choose_reduction", return_value=reduction):
        detections = model.detect(ground_truth.images, lambda: None).detections
    results = to_coco_results(detections, [image.image_id for image in ground_truth.images])
    summary = box_scores(ground_truth.coco, results).summary
    return detections, summary["AP"], summary["AP50"]


def matched_fraction(
    full_size: Sequence[ImageDetections], others: Sequence[ImageDetections], shift_px: int
) -> float:
    """Return 2 x matches / (detections of both), over detections of at least ``MIN_SCORE``."""
    matches = total = 0
    for pair in zip(full_size, others, strict=True):
        reference, other = (detections.filter_by_score(MIN_SCORE) for detections in pair)
        total += len(reference) + len(other)
        rows, _ = match_boxes(
            *(reference.boxes_xyxy, reference.class_ids),
            *(other.boxes_xyxy - shift_px, other.class_ids),
            min_iou=MIN_IOU,
        )
        matches += len(rows)
    return 2 * matches / max(total, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--sheet", type=int, nargs="+", default=[1, 2, 3], metavar="N")
    parser.add_argument("--shuffles", type=int, default=4)
    args = parser.parse_args()
    coco = json.loads(args.annotations.read_text())
    input_width = json.loads((args.package / "model.json").read_text())["input"]["width_px"]
    print(markdown_table(COLUMNS))
    for side in args.sheet:
        per_input_px = side * 640 / input_width
        full_size: Sequence[ImageDetections] = ()
        for variant in VARIANTS:
            with tempfile.TemporaryDirectory() as output:
                sheets = make_sheets(coco, args.images, side, args.shuffles, variant, Path(output))
                detections, ap, ap50 = detect(args.package, sheets, variant.reduction)
            full_size = full_size or detections
            print(
                markdown_row(
                    [
                        f"{side} x {side}",
                        len(detections),
                        f"{per_input_px:.2f}",
                        variant.name,
                        f"{per_input_px / variant.reduction:.2f}",
                        f"{ap:.4f}",
                        f"{ap50:.4f}",
                        f"{matched_fraction(full_size, detections, variant.shift_px):.3f}",
                    ]
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
