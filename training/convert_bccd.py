"""``python -m training.convert_bccd``: BCCD's Pascal VOC labels as COCO files."""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labels.voc import read_voc
from training.data.image_files import image_size

CLASSES = ("RBC", "WBC", "Platelets")


def main(arguments: Sequence[str] | None = None) -> None:
    """Copy the images, and write ``train.json``, ``val.json`` and ``test.json``."""
    parser = argparse.ArgumentParser(prog="python -m training.convert_bccd", description=__doc__)
    parser.add_argument("dataset", type=Path, help="folder BCCD of Shenggan/BCCD_Dataset")
    parser.add_argument("--output", type=Path, default=Path("data/bccd"), help="(%(default)s)")
    args = parser.parse_args(arguments)
    lists = args.dataset / "ImageSets/Main"
    train, val = ((lists / f"{name}.txt").read_text().split() for name in ("train", "val"))
    others = {path.stem for path in args.dataset.glob("Annotations/*.xml")} - {*train, *val}
    # The results in docs/training.md are those of every second image of the test split.
    splits = {"train": train, "val": val, "test": sorted(others)[::2]}
    images = args.output / "images"
    images.mkdir(parents=True, exist_ok=True)
    for split, names in splits.items():
        document = _convert(args.dataset, names)
        (args.output / f"{split}.json").write_text(json.dumps(document))
        for image in document["images"]:
            name = image["file_name"]
            shutil.copyfile(args.dataset / "JPEGImages" / name, images / name)
        print(f"{args.output / split}.json: {len(names)} images")


def _convert(dataset: Path, names: Sequence[str]) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, name in enumerate(names, start=1):
        width, height = image_size(dataset / f"JPEGImages/{name}.jpg")
        entry = {"id": image_id, "file_name": f"{name}.jpg", "width": width, "height": height}
        images.append(entry)
        for labelled in read_voc(dataset / f"Annotations/{name}.xml").objects:
            # The annotation tool counted pixels from 0, unlike Pascal VOC.
            left, top = (value + 1 for value in labelled.box_xyxy[:2])
            right, bottom = labelled.box_xyxy[2:]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": CLASSES.index(labelled.name) + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


if __name__ == "__main__":
    main()
