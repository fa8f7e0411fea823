"""Directories of KITTI and VOC labels, and keypoints of COCO."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from labels.errors import DatasetError
from model_export.class_names import KITTI
from training.data.coco import read_coco_split
from training.data.kitti import read_kitti_split
from training.data.sample import ALL_CLASSES
from training.data.voc import read_voc_split

CAR = "Car 0.00 0 1.57 10.0 20.0 50.0 44.0 1.50 1.60 3.90 -2.0 1.7 12.5 1.41"
CLASSES = ("Pedestrian", "Car")


def write_image(directory: Path, name: str = "000001.png") -> None:
    cv2.imwrite(str(directory / name), np.full((48, 64, 3), 128, np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_image(tmp_path)
    (tmp_path / "names.txt").write_text("000001\n\n")
    return tmp_path


def read_kitti(folder: Path, *lines: str):
    (folder / "000001.txt").write_text("\n".join(lines) + "\n")
    return read_kitti_split(folder / "names.txt", folder, folder, CLASSES)


def test_kitti_objects_and_ignored_regions(folder: Path) -> None:
    images = read_kitti(
        folder,
        CAR,
        "Van" + CAR[3:],
        "DontCare -1 -1 -10 0 0 9 9 -1 -1 -1 -1000 -1000 -1000 -10",
        "Tram" + CAR[3:],
    )
    (image,) = images
    assert image.pixels.shape == (48, 64, 3)
    np.testing.assert_allclose(image.boxes_xywh, [[10, 20, 40, 24]])
    assert image.class_ids.tolist() == [1]
    assert image.boxes_3d.depths_m.tolist() == [12.5]
    np.testing.assert_allclose(image.boxes_3d.dimensions_m, [[1.5, 1.6, 3.9]])
    np.testing.assert_allclose(image.boxes_3d.alphas_rad, [1.57])
    assert image.ignored_class_ids.tolist() == [1, ALL_CLASSES]
    np.testing.assert_allclose(image.ignored_xywh[1], [0, 0, 9, 9])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Car 0.00 0 1.57 10 20 50", "line 1: 6 numbers after 'Car', expected 14"),
        (CAR.replace("1.57", "nan"), "expected 14 finite"),
        (CAR.replace("1.57", "left"), "line 1: could not convert"),
        (CAR.replace("10.0 20.0 50.0", "64.0 20.0 90.0"), "lies outside the image"),
    ],
)
def test_invalid_kitti_lines_raise_errors_that_name_them(
    folder: Path, line: str, message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        read_kitti(folder, line)


@pytest.mark.parametrize(
    ("names", "message"),
    [("000002", "has no image 000002"), ("", "lists no images")],
)
def test_missing_images_and_empty_lists_raise(folder: Path, names: str, message: str) -> None:
    (folder / "names.txt").write_text(names)
    with pytest.raises(DatasetError, match=message):
        read_kitti_split(folder / "names.txt", folder, folder, CLASSES)


def test_an_image_without_a_label_file_raises(folder: Path) -> None:
    for read in (read_kitti_split, read_voc_split):
        with pytest.raises(DatasetError, match="000001"):
            read(folder / "names.txt", folder, folder, CLASSES)


def test_the_shared_kitti_frames_are_read(shared: Path, tmp_path: Path) -> None:
    kitti = shared / "data/kitti"
    names = sorted(path.stem for path in (kitti / "label_2").glob("*.txt"))
    (tmp_path / "names.txt").write_text("\n".join(names))
    images = read_kitti_split(tmp_path / "names.txt", kitti / "image_2", kitti / "label_2", KITTI)
    assert len(images) == len(names) == 51
    image = images[0]
    assert len(image.boxes_xywh) == len(image.class_ids) == len(image.boxes_3d.depths_m)


VOC = """<annotation><object><name>{name}</name><difficult>1</difficult>
<bndbox><xmin>{left}</xmin><ymin>11</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox>
</part></object></annotation>"""


def read_voc(folder: Path, content: str):
    (folder / "000001.xml").write_text(content)
    return read_voc_split(folder / "names.txt", folder, folder, ("cat", "dog"))


def test_voc_pixels_count_from_one(folder: Path) -> None:
    (image,) = read_voc(folder, VOC.format(name="dog", left=1))
    np.testing.assert_allclose(image.boxes_xywh, [[0, 10, 30, 30]])
    assert image.class_ids.tolist() == [1]
    assert image.boxes_3d is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (VOC.format(name="cow", left=1), "object 1: class 'cow' is not among"),
        (VOC.format(name="dog", left="one"), "is not four numbers"),
        (VOC.format(name="dog", left=31), "is not a box"),
        ("<annotation>", "cannot be read as XML"),
    ],
)
def test_invalid_voc_objects_raise_errors_that_name_them(
    folder: Path, content: str, message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        read_voc(folder, content)


def coco(folder: Path, **annotation: Any) -> Path:
    document = {
        "images": [{"id": 1, "file_name": "000001.png", "width": 64, "height": 48}],
        "annotations": [
            {"id": 5, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 20]} | annotation
        ],
        "categories": [{"id": 1, "name": "mouse", "keypoints": ["snout", "tail"]}],
    }
    path = folder / "labels.json"
    path.write_text(json.dumps(document))
    return path


def test_coco_keypoints(folder: Path) -> None:
    read = read_coco_split(
        coco(folder, keypoints=[3, 4, 2, 0, 0, 0]), folder, ("mouse",), ("snout", "tail")
    )
    assert read.images[0].keypoints.tolist() == [[[3, 4, 2], [0, 0, 0]]]
    unlabelled = read_coco_split(coco(folder), folder, ("mouse",), ("snout", "tail"))
    assert unlabelled.images[0].keypoints.tolist() == [[[0, 0, 0], [0, 0, 0]]]
    assert read_coco_split(coco(folder), folder, ("mouse",)).images[0].keypoints is None


def test_classes_without_keypoints_have_none(folder: Path) -> None:
    path = coco(folder, keypoints=[3, 4, 2, 0, 0, 0])
    document = json.loads(path.read_text())
    other = {"id": 6, "image_id": 1, "category_id": 2, "bbox": [1, 2, 30, 20], "keypoints": []}
    document["annotations"].append(other)
    document["categories"].append({"id": 2, "name": "cage"})
    path.write_text(json.dumps(document))
    classes, keypoints = ("cage", "mouse"), ("snout", "tail")
    read = read_coco_split(path, folder, classes, keypoints, ("mouse",)).images[0].keypoints
    assert read[0].tolist() == [[3, 4, 2], [0, 0, 0]]
    assert np.isnan(read[1]).all()
    with pytest.raises(DatasetError, match=r"cage has keypoints None, expected"):
        read_coco_split(path, folder, classes, keypoints)


def test_coco_keypoints_of_another_layout_raise(folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"has keypoints .*, expected"):
        read_coco_split(coco(folder), folder, ("mouse",), ("tail", "snout"))
    with pytest.raises(DatasetError, match="annotation 5: keypoints are not 6 finite numbers"):
        read_coco_split(coco(folder, keypoints=[1, 2]), folder, ("mouse",), ("snout", "tail"))


def test_a_truncated_image_raises_when_it_is_decoded(folder: Path) -> None:
    images = read_coco_split(coco(folder), folder, ("mouse",)).images
    path = folder / "000001.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DatasetError, match="damaged"):
        images[0]
