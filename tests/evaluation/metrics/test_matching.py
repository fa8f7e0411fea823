"""Matching of detections to objects, and the speed."""

import sys

import pytest
from support.labelled import detections, labels

from evaluation.__main__ import main
from evaluation.metrics.matching import confusion_matrix, match_detections
from evaluation.model_under_test import DetectionRun

LEFT, RIGHT = [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]
NEAR_LEFT = [0.0, 0.0, 10.0, 8.0]
NOWHERE = [50.0, 50.0, 60.0, 60.0]


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


def test_speed_by_hand() -> None:
    run = DetectionRun([], latencies_s=[0.1, 0.2, 0.3], wall_s=2.0)
    assert run.speed() == pytest.approx(
        {"images_per_s": 1.5, "latency_p50_ms": 200, "latency_p95_ms": 290}
    )


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
