"""Conversion of BCCD."""

import json
from pathlib import Path

import cv2
import numpy as np

from training.convert_bccd import main
from training.data.coco import read_coco_split

XML = "<annotation><object><name>WBC</name><bndbox><xmin>3</xmin><ymin>9</ymin>\
<xmax>37</xmax><ymax>28</ymax></bndbox></object></annotation>"


def test_splits_and_boxes(tmp_path: Path) -> None:
    source = tmp_path / "BCCD"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (source / folder).mkdir(parents=True)
    for index in range(6):
        cv2.imwrite(str(source / f"JPEGImages/{index}.jpg"), np.zeros((48, 64, 3), np.uint8))
        (source / f"Annotations/{index}.xml").write_text(XML)
    (source / "ImageSets/Main/train.txt").write_text("4\n0\n")
    (source / "ImageSets/Main/val.txt").write_text("2\n")
    main([str(source), "--output", str(tmp_path / "bccd")])
    stems = {}
    for split in ("train", "val", "test"):
        file = tmp_path / f"bccd/{split}.json"
        images = read_coco_split(file, tmp_path / "bccd/images", ("RBC", "WBC", "Platelets")).images
        stems[split] = [path.stem for path, _ in images.files]
        for _, image in images.files:
            assert image.boxes_xywh.tolist() == [[3, 9, 34, 19]]
            assert image.class_ids.tolist() == [1]
    assert stems == {"train": ["4", "0"], "val": ["2"], "test": ["1", "5"]}
    assert len(json.loads((tmp_path / "bccd/train.json").read_text())["annotations"]) == 2
