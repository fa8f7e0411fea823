"""What decoding JPEGs at 1/2, 1/4 or 1/8 does to detections, next to decoding them whole.

    python benchmarks/scaled_decoding.py --package models/blood_cells --sheet 2 3 \
        --annotations ../shared/data/bccd/test.json --images ../shared/data/bccd/images

Enlarged photos would hold no detail to lose. So photos are laid side by side, pixel for pixel, on
sheets of N x N, with all their objects: a large picture that is as sharp as the photos. Each sheet
is judged whole and reduced, and for comparison whole from a JPEG of lower quality, and whole after
everything in it was moved by one pixel. Prints Markdown: AP (COCO), and the part of the detections
with a score of 0.3 or more that were also found in the whole sheet (same class, IoU 0.7 or more).
"""

import argparse
import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from accuracy import Answers, detect_offline, evaluate
from PIL import Image

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
    facts: dict[str, Any], images: Path, side: int, shuffles: int, way: Way
) -> tuple[list[bytes], dict[str, Any]]:
    """JPEGs of ``side`` x ``side`` photos and their annotations; each photo once per shuffle."""
    width, height = 640, 480
    photos = [
        photo for photo in facts["images"] if photo["width"] <= width and photo["height"] <= height
    ]
    objects: dict[int, list[dict[str, Any]]] = {photo["id"]: [] for photo in photos}
    for found in facts["annotations"]:
        objects.get(found["image_id"], []).append(found)
    bodies: list[bytes] = []
    merged: dict[str, Any] = {"categories": facts["categories"], "images": [], "annotations": []}
    rng = np.random.default_rng(0)
    for _ in range(shuffles):
        order = rng.permutation(len(photos))
        for start in range(0, len(order) - side**2 + 1, side**2):
            sheet = Image.new("RGB", (side * width, side * height))
            sheet_id = len(bodies)
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
            merged["images"].append({"id": sheet_id, "width": sheet.width, "height": sheet.height})
            buffer = io.BytesIO()
            sheet.save(buffer, "JPEG", quality=way.quality)
            bodies.append(buffer.getvalue())
    return bodies, merged


def matched(left: Answers, right: Answers) -> float:
    """2 x common / (left + right), over detections that would be shown."""
    common = total = 0
    for answers in zip(left, right, strict=True):
        ours, theirs = ([d for d in a if d["score"] >= SHOWN_SCORE] for a in answers)
        total += len(ours) + len(theirs)
        for one in ours:
            same = [d for d in theirs if d["class_id"] == one["class_id"]]
            best = max(same, key=lambda d: _iou(one["bbox"], d["bbox"]), default=None)
            if best is not None and _iou(one["bbox"], best["bbox"]) >= SAME_IOU:
                theirs.remove(best)
                common += 1
    return 2 * common / max(total, 1)


def _iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


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
        whole: Answers = []
        for way in WAYS:
            bodies, merged = make_sheets(facts, given.images, side, given.shuffles, way)
            with (
                patch("service.predictor.choose_reduction", return_value=way.reduction),
                tempfile.NamedTemporaryFile("w", suffix=".json") as file,
            ):
                json.dump(merged, file)
                file.flush()
                answers = detect_offline(given.package, bodies)
                ap, ap50, _ = evaluate(Path(file.name), answers)["all"]
            for found in (found for answer in answers for found in answer):
                found["bbox"] = [value - way.moved_px for value in found["bbox"]]
            whole = whole or answers
            print(
                f"| {side} x {side} | {len(bodies)} | {per_input_px:.2f} | "
                f"{way.name} | {per_input_px / way.reduction:.2f} | {ap:.4f} | {ap50:.4f} | "
                f"{matched(whole, answers):.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
