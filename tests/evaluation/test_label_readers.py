"""Conversion of all label formats to the same structure, and errors of invalid labels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.errors import EvaluationError
from evaluation.ground_truth import check_images, labels_by_image, map_to_classes
from evaluation.label_readers import read_ground_truth

VOC = """<annotation><filename>{name}.jpg</filename>
<size><width>50</width><height>40</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>10</xmax><ymax>20</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
</object>
<object><name>dog</name><difficult>1</difficult>
<bndbox><xmin>11</xmin><ymin>1</ymin><xmax>20</xmax><ymax>20</ymax></bndbox></object>
</annotation>"""
CAR = "Car 0.10 1 -1.57 10.00 20.00 60.00 70.00 1.50 1.60 4.00 1.00 1.70 20.00 -1.50"
DONT_CARE = "DontCare -1 -1 -10 5.00 6.00 7.00 8.00 -1 -1 -1 -1000 -1000 -1000 -10"


def test_voc(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.xml").write_text(VOC.format(name=name))
    ground_truth = map_to_classes(
        read_ground_truth(tmp_path, tmp_path / "images"), ("dog", "cat", "owl")
    )
    assert [image.path.name for image in ground_truth.images] == ["a.jpg", "b.jpg"]
    (labels, _) = labels_by_image(ground_truth)
    # VOC counts pixels from 1, and its last pixel belongs to the box. Parts are not objects.
    assert labels.boxes_xyxy.tolist() == [[0, 0, 10, 20], [10, 0, 20, 20]]
    assert labels.class_ids.tolist() == [1, 0]
    assert labels.is_crowd.tolist() == [False, True]


def test_kitti(tmp_path: Path) -> None:
    (tmp_path / "label_2").mkdir()
    (tmp_path / "calib").mkdir()
    (tmp_path / "label_2/000003.txt").write_text(f"{CAR}\n{DONT_CARE}\n")
    (tmp_path / "label_2/000007.txt").write_text("")
    matrix = [700.0, 0, 600, 45, 0, 700, 180, -0.3, 0, 0, 1, 0.005]
    calibration = f"P0: 1\nP2: {' '.join(map(str, matrix))}\n"
    for name in ("000003", "000007"):
        (tmp_path / f"calib/{name}.txt").write_text(calibration)
    ground_truth = read_ground_truth(tmp_path / "label_2", tmp_path)
    assert [image.path.name for image in ground_truth.images] == ["000003.png", "000007.png"]
    assert ground_truth.images[0].projection == tuple(matrix)
    assert ground_truth.boxes_3d is not None
    labels = ground_truth.boxes_3d[1]
    assert labels.types == ("Car", "DontCare")
    assert (labels.truncations[0], labels.occlusions[0], labels.alphas[0]) == (0.1, 1, -1.57)
    assert labels.dimensions_hwl[0].tolist() == [1.5, 1.6, 4]
    assert labels.locations[0].tolist() == [1, 1.7, 20]
    assert labels.rotations_y[0] == -1.5
    flat, empty = labels_by_image(map_to_classes(ground_truth, ("Pedestrian", "Car")))
    assert flat.boxes_xyxy.tolist() == [[10, 20, 60, 70], [5, 6, 7, 8]]
    assert flat.is_crowd.tolist() == [False, True]
    assert len(empty.class_ids) == 0


def coco(**new: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 4, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "annotations": [
            {"image_id": 4, "category_id": 7, "bbox": [1, 2, 3, 4], "keypoints": [5, 6, 2, 0, 0, 0]}
        ],
        "categories": [{"id": 7, "name": "cat"}],
    } | new


def read(path: Path, document: Any) -> Any:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return read_ground_truth(path, path.parent)


def test_coco_files_may_omit_derived_fields(tmp_path: Path) -> None:
    ground_truth = read(tmp_path / "labels.json", coco())
    assert [image.image_id for image in ground_truth.images] == [2, 4]
    (label,) = ground_truth.coco["annotations"]
    assert (label["id"], label["area"], label["iscrowd"], label["num_keypoints"]) == (1, 12, 0, 1)
    empty, full = labels_by_image(map_to_classes(ground_truth, ("cat",)))
    assert full.keypoints.tolist() == [[[5, 6, 2], [0, 0, 0]]]
    assert empty.keypoints.shape == (0, 2, 3)


def test_a_numeric_category_name_is_a_class_index(tmp_path: Path) -> None:
    ground_truth = read(tmp_path / "labels.json", coco(categories=[{"id": 7, "name": 1}]))
    renamed = map_to_classes(ground_truth, ("dog", "cat")).coco
    assert renamed["categories"] == [{"id": 1, "name": "cat"}]
    assert [label["category_id"] for label in renamed["annotations"]] == [1]


def test_categories_without_labels_need_not_be_classes_of_the_model(tmp_path: Path) -> None:
    two = [{"id": 7, "name": "cat"}, {"id": 8, "name": "unicorn"}]
    ground_truth = map_to_classes(
        read(tmp_path / "labels.json", coco(categories=two)), ("cat", "dog")
    )
    assert [category["name"] for category in ground_truth.coco["categories"]] == ["cat"]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "not a COCO file"),
        (coco(images=[{"id": 4}]), "cannot be read: 'file_name' is missing"),
        (coco(annotations=[{"image_id": 9}]), "1 annotations belong to no image"),
        (coco(annotations=[{"image_id": 4, "category_id": 7, "bbox": [1]}]), "not four finite"),
        (coco(images=[{"id": 4, "file_name": "a"}] * 2), "the same id"),
        (coco(categories=[]), "1 annotations belong to no category"),
    ],
)
def test_invalid_coco_files_raise(document: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=message):
        read(tmp_path / "labels.json", document)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.xml", "<annotation>", "cannot be read"),
        ("a.xml", "<annotation><object><name>a</name></object></annotation>", "not four numbers"),
        ("a.txt", "Car 1 2 3", "line 1: 3 numbers"),
        ("a.txt", CAR.replace("0.10", "much"), "line 1: could not convert"),
        ("a.md", "", "holds no labels"),
    ],
)
def test_invalid_directories_raise(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(EvaluationError, match=message):
        read_ground_truth(tmp_path, tmp_path)


def test_errors_name_unknown_classes_and_missing_images(tmp_path: Path) -> None:
    ground_truth = read(tmp_path / "labels.json", coco())
    with pytest.raises(EvaluationError, match=r"classes cat, which .* classes are dog, owl"):
        map_to_classes(ground_truth, ("dog", "owl"))
    (tmp_path / "a.png").touch()
    with pytest.raises(EvaluationError, match=r"1 of 2 images are missing: .*b\.png"):
        check_images(ground_truth)
    with pytest.raises(EvaluationError, match="nothing to evaluate"):
        check_images(read(tmp_path / "labels.json", coco(images=[], annotations=[])))


def test_kitti_classes_that_the_model_does_not_have_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text(f"{CAR}\n{CAR.replace('Car', 'Tram')}\n")
    ground_truth = map_to_classes(read_ground_truth(tmp_path, tmp_path), ("Car",))
    assert [category["name"] for category in ground_truth.coco["categories"]] == ["Car"]
    assert np.array([one.class_ids for one in labels_by_image(ground_truth)]).tolist() == [[0]]
    with pytest.raises(EvaluationError, match="does not have"):
        map_to_classes(ground_truth, ("Boat",))
