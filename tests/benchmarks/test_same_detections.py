"""Comparison of the detections of two files."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.same_detections import compare, find_file, main
from evaluation.detections import ImageDetections

KEYPOINTS = 2


def _detections(**changes: object) -> ImageDetections:
    """Three boxes of two classes, the last below the threshold of 0.3, with keypoints and 3D."""
    boxes = np.array([[0, 0, 100, 50], [200, 0, 300, 50], [0, 200, 100, 250]], np.float64)
    arrays = {
        "boxes_xyxy": boxes,
        "scores": np.array([0.9, 0.5, 0.2]),
        "class_ids": np.array([0, 1, 0]),
        "keypoints": np.full((3, KEYPOINTS, 3), 20.0),
        "boxes_3d": np.tile([1.5, 1.6, 4.0, 3.0, 1.0, 20.0, 3.14, 0.1], (3, 1)),
        "octagons": np.empty((3, 0, 2)),
    }
    return ImageDetections(**(arrays | changes))  # type: ignore[arg-type]


def _shares(candidate: ImageDetections, score: float = 0.3) -> dict[str, tuple[int, int]]:
    found = compare(_detections(), candidate, score)
    return {name: (int(one.same.sum()), one.same.size) for name, one in found.items()}


def test_equal_detections_are_the_same() -> None:
    assert _shares(_detections()) == {
        "detections": (2, 2),
        "scores": (2, 2),
        "keypoints, px": (4, 4),
        "depth, relative": (2, 2),
        "dimensions, relative": (6, 6),
        "rotation, degrees": (2, 2),
    }


@pytest.mark.parametrize(
    ("scores", "same"),
    [
        ([0.905, 0.5, 0.2], (2, 2)),
        ([0.92, 0.5, 0.2], (1, 2)),
        # Above the threshold in the second file only: it counts.
        ([0.9, 0.5, 0.31], (2, 3)),
        ([0.9, 0.295, 0.2], (1, 2)),
    ],
)
def test_scores_may_differ_by_one_hundredth(scores: list[float], same: tuple[int, int]) -> None:
    assert _shares(_detections(scores=np.array(scores)))["detections"] == same


def test_matched_detections_may_lie_on_both_sides_of_the_threshold() -> None:
    assert _shares(_detections(scores=np.array([0.9, 0.5, 0.2])), 0.501)["detections"] == (1, 1)
    assert _shares(_detections(scores=np.array([0.9, 0.505, 0.2])), 0.501)["detections"] == (2, 2)


@pytest.mark.parametrize(
    ("shift_px", "same"),
    [
        (0.4, (2, 2)),
        (1.5, (1, 2)),
        (500, (1, 3)),
    ],  # the last: one false negative, one false positive
)
def test_boxes_must_overlap(shift_px: float, same: tuple[int, int]) -> None:
    boxes = _detections().boxes_xyxy
    boxes[0, [0, 2]] += shift_px
    assert _shares(_detections(boxes_xyxy=boxes))["detections"] == same


def test_detections_of_different_classes_do_not_match() -> None:
    assert _shares(_detections(class_ids=np.array([1, 1, 0])))["detections"] == (1, 3)


def test_images_without_detections() -> None:
    empty = _detections()[:0]
    assert _shares(empty)["detections"] == (0, 2)
    assert compare(empty, empty, 0.3)["detections"].same.size == 0


def test_keypoints_may_differ_by_one_hundredth_of_the_side() -> None:
    keypoints = _detections().keypoints
    keypoints[0, 0, 0] += 0.9
    keypoints[0, 1, 1] += 1.1  # the sides are 100 long
    assert _shares(_detections(keypoints=keypoints))["keypoints, px"] == (3, 4)


@pytest.mark.parametrize(
    ("column", "value", "quantity", "same"),
    [
        (5, 20.1, "depth, relative", (2, 2)),
        (5, 20.3, "depth, relative", (1, 2)),
        (2, 4.1, "dimensions, relative", (5, 6)),
        (6, -3.14, "rotation, degrees", (2, 2)),  # almost 360 degrees
        (6, 3.1, "rotation, degrees", (1, 2)),
    ],
)
def test_3d_boxes(column: int, value: float, quantity: str, same: tuple[int, int]) -> None:
    boxes = _detections().boxes_3d
    boxes[0, column] = value
    shares = _shares(_detections(boxes_3d=boxes))
    assert shares.pop(quantity) == same
    assert all(count == total for count, total in shares.values())


def test_the_bundled_fp16_file_matches_its_fp32_file(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = project / "models" / "blood_cells"
    arguments = [str(package), str(package / "model_fp16.onnx"), "--max-images", "2"]
    assert main([*arguments, "--images", str(project / "docs" / "samples")]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("| detections |") == 2
    assert "with explicit rounding" in printed.err
    compared = int(printed.out.partition("| detections | ")[2].split(" ")[0])
    assert compared > 10


def test_a_file_outside_a_package_is_rejected(project: Path) -> None:
    with pytest.raises(SystemExit, match="is not an ONNX file of a package"):
        find_file(project / "models" / "blood_cells" / "absent.onnx")
