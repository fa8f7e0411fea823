"""Label files of YOLO."""

from pathlib import Path

import numpy as np
import pytest

from labels.errors import DatasetError
from labels.yolo import YoloLabels, read_yolo


def read(directory: Path, text: str, *shape: int) -> YoloLabels:
    (directory / "image.txt").write_text(text)
    return read_yolo(directory / "image.txt", *shape)


def test_boxes_become_corner_and_size(tmp_path: Path) -> None:
    labels = read(tmp_path, "1 0.5 0.4 0.2 0.6\n\n0 0.1 0.1 0.2 0.2\n")
    assert labels.class_ids.tolist() == [1, 0]
    np.testing.assert_allclose(labels.boxes_xywh, [[0.4, 0.1, 0.2, 0.6], [0, 0, 0.2, 0.2]])
    assert labels.keypoints.shape == (2, 0, 3)


def test_polygons_become_their_bounds(tmp_path: Path) -> None:
    labels = read(tmp_path, "2 0.1 0.5 0.3 0.2 0.4 0.6")
    np.testing.assert_allclose(labels.boxes_xywh, [[0.1, 0.2, 0.3, 0.4]])


@pytest.mark.parametrize(
    ("values", "dimensions", "visibilities"),
    [("0.1 0.2 2 0.3 0.4 1 0 0 0", 3, [2, 1, 0]), ("0.1 0.2 0.3 0.4 0 0", 2, [2, 2, 0])],
)
def test_keypoints_have_a_visibility(
    tmp_path: Path, values: str, dimensions: int, visibilities: list[int]
) -> None:
    labels = read(tmp_path, f"0 0.5 0.5 1 1 {values}", 3, dimensions)
    np.testing.assert_allclose(labels.keypoints[0, :, :2], [[0.1, 0.2], [0.3, 0.4], [0, 0]])
    assert labels.keypoints[0, :, 2].tolist() == visibilities


def test_a_missing_file_has_no_objects(tmp_path: Path) -> None:
    assert read_yolo(tmp_path / "none.txt", 5).keypoints.shape == (0, 5, 3)


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ("0 0.5 0.5 0.1\n", (), "line 1: 3 numbers after the class, expected 4"),
        ("\n0 0.5 0.5 0.1 0.1 0.2\n", (), "line 2: 5 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.2 0.2", (2, 2), r"expected 4 and 2 x 2 of keypoints"),
        ("cat 0.5 0.5 0.1 0.1", (), "could not convert"),
        ("0.5 0.5 0.5 0.1 0.1", (), "expected an index of a class"),
        ("-1 0.5 0.5 0.1 0.1", (), "expected an index of a class"),
        ("inf 0.5 0.5 0.1 0.1", (), "expected an index of a class"),
        ("0 nan 0.5 0.1 0.1", (), "finite numbers"),
    ],
)
def test_other_lines_are_refused(
    tmp_path: Path, text: str, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        read(tmp_path, text, *shape)
