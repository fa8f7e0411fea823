"""Matching of detections to objects, the worst images, the speed and the report."""

import sys
from pathlib import Path

import numpy as np
import pytest
from support.images import encode, plain

from evaluation.__main__ import main
from evaluation.detections import ImageDetections
from evaluation.ground_truth import ImageLabels, LabelledImage
from evaluation.metrics.matching import confusion_matrix, match_detections
from evaluation.model_under_test import DetectionRun, ModelUnderTest
from evaluation.report import Figure, Report, Table, write_report
from evaluation.worst_images import worst_images

LEFT, RIGHT = [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]
NEAR_LEFT = [0.0, 0.0, 10.0, 8.0]
NOWHERE = [50.0, 50.0, 60.0, 60.0]


def labels(*rows: tuple[list[float], int], crowd: int | None = None) -> ImageLabels:
    count = len(rows)
    return ImageLabels(
        np.array([box for box, _ in rows], np.float64).reshape(count, 4),
        np.array([class_id for _, class_id in rows], np.int64),
        np.arange(count) == (-1 if crowd is None else crowd),
        np.empty((count, 0, 3)),
    )


def detections(*rows: tuple[list[float], int]) -> ImageDetections:
    """Best score first: 0.9, 0.8 ..."""
    boxes = labels(*rows)
    scores = 0.9 - np.arange(len(rows)) / 10
    empty = np.empty((len(rows), 0))
    return ImageDetections(boxes.boxes_xyxy, scores, boxes.class_ids, boxes.keypoints, empty)


def test_each_object_matches_the_detection_with_the_best_score() -> None:
    matches = match_detections(
        labels((LEFT, 0), (RIGHT, 0)),
        detections((NEAR_LEFT, 0), (LEFT, 0), (NOWHERE, 0)),
        same_class=True,
    )
    assert matches.pairs.tolist() == [[0, 0]]
    assert matches.false_negatives.tolist() == [1]
    assert matches.false_positives.tolist() == [1, 2]
    assert matches.f1 == pytest.approx(2 / 5)
    assert match_detections(labels(), detections(), same_class=True).f1 == 1


def test_detections_in_a_crowd_are_neither_true_nor_false_positives() -> None:
    crowd = [0.0, 0.0, 40.0, 40.0]
    ground_truth = labels((crowd, 0), crowd=0)
    matches = match_detections(
        ground_truth, detections((LEFT, 0), (RIGHT, 0), (NOWHERE, 0), (LEFT, 1)), same_class=True
    )
    assert matches.pairs.tolist() == matches.false_negatives.tolist() == []
    assert matches.false_positives.tolist() == [2, 3]


def test_confusion_matrix_by_hand() -> None:
    first = labels((LEFT, 0), (RIGHT, 1)), detections((LEFT, 0), (RIGHT, 0))
    second = labels((LEFT, 1)), detections((NOWHERE, 1))
    assert confusion_matrix([first, second], 2).tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]


def test_worst_images_are_sorted_and_images_without_errors_omitted(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(plain(1, 2)))
    names = ["good", "half", "bad", "worse"]
    images = []
    for number, name in enumerate(names):
        (tmp_path / f"{name}.png").write_bytes(path.read_bytes())
        images.append(LabelledImage(number, tmp_path / f"{name}.png"))
    ground_truth = [labels((LEFT, 0), (RIGHT, 0))] * 4
    images_detections = [
        detections((LEFT, 0), (RIGHT, 0)),
        detections((LEFT, 0)),
        detections(),
        detections((NOWHERE, 0), (NOWHERE, 0)),
    ]
    model = ModelUnderTest("m", "1", "center_boxes", ("a",), 0.3, 100, "engine", "offline")
    titles = [
        figure.title for figure in worst_images(images, ground_truth, images_detections, model)
    ]
    assert [title.partition(".png")[0] for title in titles] == ["worse", "bad", "half"]
    assert "F1 0.00, 2 false negatives, 2 false positives" in titles[0]
    assert "F1 0.67, 1 false negatives, 0 false positives" in titles[2]


def test_speed_by_hand() -> None:
    run = DetectionRun([], latencies_s=[0.1, 0.2, 0.3], wall_s=2.0)
    assert run.speed() == pytest.approx(
        {"images_per_s": 1.5, "latency_p50_ms": 200, "latency_p95_ms": 290}
    )


def test_reports_escape_names_and_are_written_atomically(tmp_path: Path) -> None:
    table = Table("Classes", ["class", "AP"], [["<a|b>", float("nan")], ["c", 0.12345]], "Note <.")
    report = Report("R & D", ["x < y"], [table], {"AP": [float("nan"), 0.5]})
    output = tmp_path / "report"
    write_report(report, output)
    assert r"| <a\|b> | – |" in (output / "report.md").read_text()  # noqa: RUF001
    page = (output / "report.html").read_text()
    assert "<td>&lt;a|b&gt;</td>" in page
    assert "Note &lt;." in page
    assert "<td>0.123</td>" in page
    assert '"AP": [\n  null,\n  0.5\n ]' in (output / "results.json").read_text()
    report.sections.append(Figure("no", "no/such/folder.png", b""))
    with pytest.raises(OSError, match="folder"):
        write_report(report, tmp_path / "other")
    assert list(tmp_path.iterdir()) == [output]


def test_a_missing_dependency_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("evaluation.cli", "evaluation.evaluate", "evaluation.metrics.coco"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr("evaluation.cli", raising=False)
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "pycocotools.cocoeval is not installed" in capsys.readouterr().err
