"""The command that compares two files: what it counts, and that it counts on a real package."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.same_detections import compare, find_file, main
from evaluation.detections import Answer

KEYPOINTS = 2


def _answer(**changes: object) -> Answer:
    """Three boxes of two classes, the last below the threshold of 0.3, with keypoints and 3D."""
    boxes = np.array([[0, 0, 100, 50], [200, 0, 300, 50], [0, 200, 100, 250]], np.float64)
    facts = {
        "boxes_xyxy": boxes,
        "scores": np.array([0.9, 0.5, 0.2]),
        "class_ids": np.array([0, 1, 0]),
        "keypoints": np.full((3, KEYPOINTS, 3), 20.0),
        "space": np.tile([1.5, 1.6, 4.0, 3.0, 1.0, 20.0, 3.14, 0.1], (3, 1)),
    }
    return Answer(**(facts | changes))  # type: ignore[arg-type]


def _shares(candidate: Answer, score: float = 0.3) -> dict[str, tuple[int, int]]:
    found = compare(_answer(), candidate, score)
    return {name: (int(one.same.sum()), one.same.size) for name, one in found.items()}


def test_the_same_is_the_same() -> None:
    assert _shares(_answer()) == {
        "detections": (2, 2),
        "their scores": (2, 2),
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
        # Shown by the second file alone: it counts.
        ([0.9, 0.5, 0.31], (2, 3)),
        ([0.9, 0.295, 0.2], (1, 2)),
    ],
)
def test_scores_may_differ_by_a_hundredth(scores: list[float], same: tuple[int, int]) -> None:
    assert _shares(_answer(scores=np.array(scores)))["detections"] == same


def test_partners_may_lie_on_both_sides_of_the_threshold() -> None:
    assert _shares(_answer(scores=np.array([0.9, 0.5, 0.2])), 0.501)["detections"] == (1, 1)
    assert _shares(_answer(scores=np.array([0.9, 0.505, 0.2])), 0.501)["detections"] == (2, 2)


@pytest.mark.parametrize(
    ("shift_px", "same"),
    [(0.4, (2, 2)), (1.5, (1, 2)), (500, (1, 3))],  # the last: one lost, one invented
)
def test_boxes_must_overlap(shift_px: float, same: tuple[int, int]) -> None:
    boxes = _answer().boxes_xyxy
    boxes[0, [0, 2]] += shift_px
    assert _shares(_answer(boxes_xyxy=boxes))["detections"] == same


def test_another_class_is_another_thing() -> None:
    assert _shares(_answer(class_ids=np.array([1, 1, 0])))["detections"] == (1, 3)


def test_nothing_found_is_nothing_compared() -> None:
    nothing = _answer()[:0]
    assert _shares(nothing)["detections"] == (0, 2)
    assert compare(nothing, nothing, 0.3)["detections"].same.size == 0


def test_keypoints_may_be_a_hundredth_of_the_side_away() -> None:
    keypoints = _answer().keypoints
    keypoints[0, 0, 0] += 0.9
    keypoints[0, 1, 1] += 1.1  # the sides are 100 long
    assert _shares(_answer(keypoints=keypoints))["keypoints, px"] == (3, 4)


@pytest.mark.parametrize(
    ("column", "to", "what", "same"),
    [
        (5, 20.1, "depth, relative", (2, 2)),
        (5, 20.3, "depth, relative", (1, 2)),
        (2, 4.1, "dimensions, relative", (5, 6)),
        (6, -3.14, "rotation, degrees", (2, 2)),  # almost a whole turn
        (6, 3.1, "rotation, degrees", (1, 2)),
    ],
)
def test_boxes_3d(column: int, to: float, what: str, same: tuple[int, int]) -> None:
    space = _answer().space
    space[0, column] = to
    shares = _shares(_answer(space=space))
    assert shares.pop(what) == same
    assert all(count == total for count, total in shares.values())


def test_the_bundled_half_file_against_its_float32_file(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = project / "models" / "blood_cells"
    arguments = [str(package), str(package / "model_fp16.onnx"), "--max-images", "2"]
    assert main([*arguments, "--images", str(project / "docs" / "samples")]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("| detections |") == 2
    assert "rounding made explicit" in printed.err
    compared = int(printed.out.partition("| detections | ")[2].split(" ")[0])
    assert compared > 10


def test_what_is_no_file_of_a_package_is_refused(project: Path) -> None:
    with pytest.raises(SystemExit, match="is no ONNX file of a package"):
        find_file(project / "models" / "blood_cells" / "absent.onnx")
