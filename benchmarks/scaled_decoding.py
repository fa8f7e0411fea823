"""What decoding JPEGs at 1/2, 1/4 or 1/8 does to detections, next to decoding them whole.

    python benchmarks/scaled_decoding.py --package models/blood_cells --sheet 2 3 \
        --annotations ../shared/data/bccd/test.json --images ../shared/data/bccd/images

Enlarged photos would hold no detail to lose. So photos are laid side by side, pixel for pixel, on
sheets of N x N, with all their objects: a large image that is as sharp as the photos. Each sheet
is evaluated whole and reduced, and for comparison whole from a JPEG of lower quality, and whole after
everything in it was moved by one pixel. Prints Markdown: AP (COCO), and the part of the detections
with a score of 0.3 or more that were also found in the whole sheet (same class, IoU 0.7 or more).
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

from evaluation.detections import Answer, as_coco_rows
from evaluation.ground_truth import for_classes
from evaluation.label_readers import read_ground_truth
from evaluation.local_model import OfflinePackage
from evaluation.metrics.coco import box_scores
from evaluation.metrics.matching import overlaps_of_boxes

SHOWN_SCORE, SAME_IOU = 0.3, 0.7


@dataclass(frozen=True)
class Way:
    """How a sheet is saved and decoded."""

    name: str
    reduction: int = 1
    quality: int = 90
    moved_px: int = 0


WAYS = (
    Way("whole"),
    Way("1/2", reduction=2),
    Way("1/4", reduction=4),
    Way("whole, quality 75 instead of 90", quality=75),
    Way("whole, moved by one pixel", moved_px=1),
)


def make_sheets(
    facts: dict[str, Any], images: Path, side: int, shuffles: int, way: Way, output: Path
) -> Path:
    """Write sheets of ``side`` x ``side`` photos, each once per shuffle, and their COCO file."""
    width, height = 640, 480
    photos = [
        photo for photo in facts["images"] if photo["width"] <= width and photo["height"] <= height
    ]
    objects: dict[int, list[dict[str, Any]]] = {photo["id"]: [] for photo in photos}
    for found in facts["annotations"]:
        objects.get(found["image_id"], []).append(found)
    merged: dict[str, Any] = {"categories": facts["categories"], "images": [], "annotations": []}
    rng = np.random.default_rng(0)
    for _ in range(shuffles):
        order = rng.permutation(len(photos))
        for start in range(0, len(order) - side**2 + 1, side**2):
            sheet = Image.new("RGB", (side * width, side * height))
            sheet_id = len(merged["images"]) + 1
            name = f"{sheet_id}.jpg"
            for cell, index in enumerate(order[start : start + side**2]):
                left, top = (
                    cell % side * width + way.moved_px,
                    cell // side * height + way.moved_px,
                )
                with Image.open(images / photos[index]["file_name"]) as photo:
                    sheet.paste(photo.convert("RGB"), (left, top))
                for found in objects[photos[index]["id"]]:
                    x, y, *size = found["bbox"]
                    merged["annotations"].append(
                        {key: found[key] for key in ("category_id", "area", "iscrowd")}
                        | {"id": len(merged["annotations"]) + 1, "image_id": sheet_id}
                        | {"bbox": [x + left, y + top, *size]}
                    )
            merged["images"].append({"id": sheet_id, "file_name": name})
            sheet.save(output / name, quality=way.quality)
    path = output / "sheets.json"
    path.write_text(json.dumps(merged))
    return path


def detect(package: Path, annotations: Path, reduction: int) -> tuple[list[Answer], float, float]:
    """The answers to all sheets, AP and AP50, with JPEGs decoded at 1 / ``reduction``."""
    model = OfflinePackage(package)
    ground_truth = for_classes(
        read_ground_truth(annotations, annotations.parent), model.model.classes
    )
    with patch("service.detector.choose_reduction", return_value=reduction):
        answers = model.detect(ground_truth.images, lambda: None).all_answers()
    rows = as_coco_rows(answers, [image.image_id for image in ground_truth.images])
    summary = box_scores(ground_truth.coco, rows).summary
    return answers, summary["AP"], summary["AP50"]


def matched(left: Sequence[Answer], right: Sequence[Answer], moved_px: int) -> float:
    """2 x common / (left + right), over detections that would be shown."""
    common = total = 0
    for answers in zip(left, right, strict=True):
        local, upstream = (answer.shown(SHOWN_SCORE) for answer in answers)
        total += len(local) + len(upstream)
        iou, _ = overlaps_of_boxes(local.boxes_xyxy, upstream.boxes_xyxy - moved_px)
        iou[local.class_ids[:, None] != upstream.class_ids] = 0
        for row in iou:
            if len(row) and row.max() >= SAME_IOU:
                iou[:, row.argmax()] = 0
                common += 1
    return 2 * common / max(total, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--sheet", type=int, nargs="+", default=[1, 2, 3], metavar="N")
    parser.add_argument("--shuffles", type=int, default=4)
    given = parser.parse_args()
    facts = json.loads(given.annotations.read_text())
    input_width = json.loads((given.package / "model.json").read_text())["input"]["width_px"]
    print("| sheet | sheets | pixels per input pixel | decoded | pixels left | AP | AP50 | same |")
    print("|---|---|---|---|---|---|---|---|")
    for side in given.sheet:
        per_input_px = side * 640 / input_width
        whole: list[Answer] = []
        for way in WAYS:
            with tempfile.TemporaryDirectory() as output:
                sheets = make_sheets(facts, given.images, side, given.shuffles, way, Path(output))
                answers, ap, ap50 = detect(given.package, sheets, way.reduction)
            whole = whole or answers
            print(
                f"| {side} x {side} | {len(answers)} | {per_input_px:.2f} | "
                f"{way.name} | {per_input_px / way.reduction:.2f} | {ap:.4f} | {ap50:.4f} | "
                f"{matched(whole, answers, way.moved_px):.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
