"""Labelled folders in the layouts that annotation tools and data sets have."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from labels.errors import DatasetError
from training.data.folder import LabelledFolder, open_folder
from training.data.image_files import Images

CAR = "Car 0 0 1.57 10 20 50 44 1.50 1.60 3.90 -2.0 1.7 12.5 1.41\n"
XML = "<annotation><object><name>{}</name><bndbox><xmin>1</xmin><ymin>1</ymin>\
<xmax>20</xmax><ymax>30</ymax></bndbox></object></annotation>"


def write(path: Path, content: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".png", ".jpg"):
        cv2.imwrite(str(path), np.full((48, 64, 3), 128, np.uint8))
    else:
        path.write_text(content)


def write_coco(path: Path, count: int = 1, **category: Any) -> None:
    keypoints = {"keypoints": [5, 5, 2] * len(category.get("keypoints", ()))}
    document = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in range(count)
        ],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 7, "bbox": [1, 2, 20, 30], **keypoints}
            for i in range(count)
        ],
        "categories": [{"id": 0, "name": "group"}, {"id": 7, "name": "cat", **category}],
    }
    write(path, json.dumps(document))


def names(images: Images) -> list[str]:
    return [path.name for path, _ in images.files]


def box_of(images: Images) -> list[float]:
    return images.files[0][1].boxes_xywh[0].tolist()


def coco_beside_images(root: Path) -> None:
    for split in ("train", "valid", "test"):
        write_coco(root / split / "_annotations.coco.json")
        write(root / split / "0.png")


def coco_in_annotations(root: Path) -> None:
    for split in ("train", "val"):
        write_coco(root / f"annotations/instances_{split}2017.json")
        write(root / f"{split}2017" / "0.png")
    write(root / "annotations/captions_train2017.json", '{"images": [], "annotations": []}')


def yolo(root: Path) -> None:
    for split in ("train", "val"):
        write(root / f"images/{split}/0.png")
        write(root / f"labels/{split}/0.txt", "1 0.171875 0.3541666667 0.3125 0.625\n")
    write(root / "images/train/background.png")
    write(root / "data.yaml", "path: .\ntrain: images/train\nval: images/val\nnames: [dog, cat]\n")


def yolo_of_roboflow(root: Path) -> None:
    for split in ("train", "valid"):
        write(root / f"{split}/images/0.png")
        write(root / f"{split}/labels/0.txt", "0 0.171875 0.3541666667 0.3125 0.625\n")
    write(
        root / "data.yaml",
        "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: {0: cat}\n",
    )


def voc(root: Path) -> None:
    for name in ("0", "1"):
        write(root / f"JPEGImages/{name}.jpg")
        write(root / f"Annotations/{name}.xml", XML.format("cat"))
    write(root / "ImageSets/Main/train.txt", "0\n")
    write(root / "ImageSets/Main/val.txt", "1\n")


def voc_beside_images(root: Path) -> None:
    for split in ("train", "valid"):
        write(root / f"{split}/0.jpg")
        write(root / f"{split}/0.xml", XML.format("cat"))


@pytest.mark.parametrize(
    ("layout", "label_format", "train", "validation"),
    [
        (coco_beside_images, "COCO", ["0.png"], ["0.png"]),
        (coco_in_annotations, "COCO", ["0.png"], ["0.png"]),
        (yolo, "YOLO", ["0.png", "background.png"], ["0.png"]),
        (yolo_of_roboflow, "YOLO", ["0.png"], ["0.png"]),
        (voc, "Pascal VOC", ["0.jpg"], ["1.jpg"]),
        (voc_beside_images, "Pascal VOC", ["0.jpg"], ["0.jpg"]),
    ],
)
def test_layouts(
    tmp_path: Path,
    layout: Callable[[Path], None],
    label_format: str,
    train: list[str],
    validation: list[str],
) -> None:
    layout(tmp_path)
    folder = open_folder(tmp_path)
    assert (folder.format, folder.classes) == (label_format, ("cat",))
    assert (names(folder.train), names(folder.validation)) == (train, validation)
    assert not folder.is_split_off
    assert folder.train.files[0][0] != folder.validation.files[0][0]
    expected = [0, 0, 20, 30] if label_format == "Pascal VOC" else [1, 2, 20, 30]
    assert box_of(folder.train) == pytest.approx(expected, abs=1e-4)
    assert folder.train.files[0][1].class_ids.tolist() == [0]
    assert folder.train[0].pixels.shape == (48, 64, 3)


def test_kitti(tmp_path: Path) -> None:
    for name in ("000000", "000001"):
        write(tmp_path / f"training/image_2/{name}.png")
        write(tmp_path / f"training/label_2/{name}.txt", CAR + CAR.replace("Car", "Van"))
    matrix = [100.0, 0, 32, 1, 0, 100, 24, 2, 0, 0, 1, 3]
    write(tmp_path / "training/calib/000000.txt", f"P2: {' '.join(map(str, matrix))}\n")
    folder = open_folder(tmp_path)
    assert (folder.format, folder.classes, folder.has_boxes_3d) == ("KITTI", ("Car",), True)
    assert folder.projection == tuple(matrix)
    assert len(folder.train.files[0][1].ignored_xywh) == 1  # the van
    unknown = CAR.replace("1.50 1.60 3.90", "-1 -1 -1")
    write(tmp_path / "training/label_2/000000.txt", unknown)
    assert not open_folder(tmp_path).has_boxes_3d


def test_keypoints_of_coco(tmp_path: Path) -> None:
    write_coco(tmp_path / "labels.json", keypoints=["nose", "tail"])
    write(tmp_path / "0.png")
    folder = open_folder(tmp_path)
    assert folder.keypoints == ("nose", "tail")
    assert folder.train.files[0][1].keypoints.tolist() == [[[5, 5, 2], [5, 5, 2]]]


@pytest.mark.parametrize(
    ("flip", "keypoints", "can_flip"),
    [
        ("flip_idx: [0, 2, 1]", ("0", "left_1", "right_1"), True),
        ("", ("0", "1", "2"), False),
        ("kpt_names: {0: [nose, left_ear, right_ear]}", ("nose", "left_ear", "right_ear"), False),
    ],
)
def test_keypoints_of_yolo(
    tmp_path: Path, flip: str, keypoints: tuple[str, ...], can_flip: bool
) -> None:
    write(tmp_path / "images/0.png")
    write(tmp_path / "labels/0.txt", "0 0.5 0.5 1 1 0.25 0.5 2 0 0 0 0.5 0.5 1\n")
    write(tmp_path / "data.yaml", f"train: images\nnames: [cat]\nkpt_shape: [3, 3]\n{flip}\n")
    folder = open_folder(tmp_path)
    assert (folder.keypoints, folder.can_flip) == (keypoints, can_flip)
    assert folder.train.files[0][1].keypoints.tolist() == [[[16, 24, 2], [0, 0, 0], [32, 24, 1]]]


def write_many(root: Path, count: int) -> LabelledFolder:
    write_coco(root / "labels.json", count)
    for index in range(count):
        write(root / f"{index}.png")
    return open_folder(root)


def test_a_tenth_is_split_off_and_stays_when_images_are_added(tmp_path: Path) -> None:
    folder = write_many(tmp_path, 20)
    assert folder.is_split_off
    assert (len(folder.train), len(folder.validation)) == (18, 2)
    assert not set(names(folder.train)) & set(names(folder.validation))
    assert names(folder.validation) == ["0.png", "6.png"]  # by hash, not by name
    larger = names(write_many(tmp_path, 40).validation)
    assert len(larger) == 4
    assert set(names(folder.validation)) < set(larger)


def test_few_images_are_not_split(tmp_path: Path) -> None:
    folder = write_many(tmp_path, 9)
    assert (len(folder.train), len(folder.validation), folder.is_split_off) == (9, 0, False)


def remove_labels(root: Path) -> None:
    for path in root.rglob("*.txt"):
        path.unlink()


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        (lambda root: write(root / "0.png"), None, "no labels found. Accepted: COCO"),
        (coco_beside_images, yolo, "labels in the formats COCO and YOLO found"),
        (
            coco_in_annotations,
            lambda root: write_coco(root / "annotations/person_keypoints_train2017.json"),
            "are COCO files for train",
        ),
        (yolo, remove_labels, "none of the 2 images for training has a label file"),
        (yolo, lambda root: write(root / "other.yaml", "names: [a]"), "data.yaml and other.yaml"),
        (yolo, lambda root: write(root / "data.yaml", "names: [dog"), "cannot be read as YAML"),
        (yolo, lambda root: write(root / "data.yaml", "names: 3"), "names is 3; expected a list"),
        (
            yolo,
            lambda root: write(root / "data.yaml", "names: [a]\ntrain: gone"),
            "train is 'gone', which is not in",
        ),
        (
            yolo,
            lambda root: write(root / "data.yaml", "names: [dog]\ntrain: images/train"),
            "class 1 is not among",
        ),
        (
            yolo,
            lambda root: write(root / "data.yaml", "names: [a]\nkpt_shape: [1000000000, 3]"),
            "kpt_shape is",
        ),
        (
            yolo,
            lambda root: write(
                root / "data.yaml", "names: [a]\nkpt_shape: [3, 3]\nflip_idx: [1, 2, 0]"
            ),
            "flip_idx is",
        ),
        (voc, lambda root: (root / "JPEGImages/0.jpg").unlink(), "has no image 0"),
        (
            voc_beside_images,
            lambda root: (root / "train/0.jpg").unlink(),
            "1 of 1 labelled images are missing, such as 0",
        ),
    ],
)
def test_errors_say_what_was_found(
    tmp_path: Path,
    layout: Callable[[Path], None],
    change: Callable[[Path], None] | None,
    message: str,
) -> None:
    layout(tmp_path)
    if change is not None:
        change(tmp_path)
    with pytest.raises(DatasetError, match=message):
        open_folder(tmp_path)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not a folder"):
        open_folder(tmp_path / "none")
