"""Label files as the readers return them, and errors that only one format has."""

import json
from pathlib import Path
from typing import Any

import pytest

from labels.coco import check_annotations, read_coco
from labels.errors import DatasetError
from labels.image_files import find_image, image_path
from labels.kitti import read_kitti, read_projection
from labels.voc import VocObject, read_voc

CAR = "Car 0.10 1 -1.57 10 20 60 70 1.5 1.6 4 1 1.7 20 -1.5"


def coco(path: Path, **changes: Any) -> Path:
    document = {
        "images": [{"id": 4, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "annotations": [{"image_id": 4, "category_id": 7, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 7, "name": 1}],
    }
    path.write_text(json.dumps(document | changes))
    return path


def test_coco_keeps_the_order_of_the_file_and_names_are_strings(tmp_path: Path) -> None:
    dataset = read_coco(coco(tmp_path / "labels.json"))
    check_annotations(dataset)
    assert [image["id"] for image in dataset.images] == [4, 2]
    assert dataset.categories[0]["name"] == "1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [{"id": 4, "file_name": 3}]}, "image 4: file_name is not a string"),
        ({"annotations": [[]]}, "cannot be read"),
        (
            {"annotations": [{"image_id": 4, "category_id": 7, "bbox": [1, 2, 3, "4"]}]},
            "cannot be read",
        ),
        (
            {"annotations": [{"image_id": 4, "category_id": 7, "bbox": [1, 2, 3, float("nan")]}]},
            "annotation number 1: bbox .* is not four finite numbers",
        ),
        ({"annotations": [{"image_id": 4, "bbox": [1, 2, 3, 4]}]}, "'category_id' is missing"),
    ],
)
def test_invalid_coco_entries_raise(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        check_annotations(read_coco(coco(tmp_path / "labels.json", **changes)))


def test_voc_boxes_count_from_0_with_exclusive_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>10</xmax><ymax>20</ymax></bndbox>"
    path.write_text(f"<annotation><object><name> cat </name>{box}</object></annotation>")
    annotation = read_voc(path)
    assert annotation.objects == (VocObject("cat", (0, 1, 10, 20), False),)
    assert (annotation.file_name, annotation.width, annotation.height) == (None, 0, 0)
    path.write_text(f"<a><object><difficult>maybe</difficult>{box}</object></a>")
    with pytest.raises(DatasetError, match="object 1: difficult 'maybe' is not an integer"):
        read_voc(path)


def test_kitti_lines_may_have_a_score(tmp_path: Path) -> None:
    path = tmp_path / "1.txt"
    path.write_text(f"{CAR}\n\n{CAR} 0.9\n")
    labels = read_kitti(path)
    assert labels.types == ("Car", "Car")
    assert labels.boxes_xyxy.tolist() == [[10, 20, 60, 70]] * 2
    path.write_text(f"\n{CAR} 0.9 1\n")
    with pytest.raises(DatasetError, match="line 2: 16 numbers after 'Car', expected 14"):
        read_kitti(path)


@pytest.mark.parametrize("text", ["P0: 1\n", "P2: 1 2 3\n", "P2: left\n"])
def test_calibrations_without_a_projection_raise(tmp_path: Path, text: str) -> None:
    path = tmp_path / "1.txt"
    path.write_text(text)
    with pytest.raises(DatasetError, match="P2"):
        read_projection(path)


def test_images_are_found_by_name(tmp_path: Path) -> None:
    assert find_image(tmp_path, "a") is None
    (tmp_path / "a.jpg").touch()
    assert find_image(tmp_path, "a") == tmp_path / "a.jpg"


@pytest.mark.parametrize(
    "file_name",
    ["a.png", "../studio/data/media/upload/2/a.png", "images\\a.png", "/home/annotator/a.png"],
)
def test_images_are_found_by_the_last_part_of_a_path(tmp_path: Path, file_name: str) -> None:
    assert image_path(tmp_path, file_name) == tmp_path / file_name  # missing
    (tmp_path / "a.png").touch()
    assert image_path(tmp_path, file_name) == tmp_path / "a.png"


def test_the_whole_path_of_an_image_comes_first(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "a.png").touch()
    (tmp_path / "images" / "a.png").touch()
    assert image_path(tmp_path, "images/a.png") == tmp_path / "images" / "a.png"
