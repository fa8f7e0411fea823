"""Which detection stands for which object, and what the report makes of it."""

import sys
from pathlib import Path

import numpy as np
import pytest
from support.images import encode, plain

from evaluation.__main__ import main
from evaluation.detections import Answer
from evaluation.ground_truth import ImageLabels, LabelledImage
from evaluation.metrics.matching import confusion_matrix, match
from evaluation.model_under_test import ModelUnderTest, Run
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


def answer(*rows: tuple[list[float], int]) -> Answer:
    """Best score first: 0.9, 0.8 ..."""
    found = labels(*rows)
    scores = 0.9 - np.arange(len(rows)) / 10
    empty = np.empty((len(rows), 0))
    return Answer(found.boxes_xyxy, scores, found.class_ids, found.keypoints, empty)


def test_each_object_is_found_once_by_the_best_score() -> None:
    matches = match(
        labels((LEFT, 0), (RIGHT, 0)),
        answer((NEAR_LEFT, 0), (LEFT, 0), (NOWHERE, 0)),
        same_class=True,
    )
    assert matches.pairs.tolist() == [[0, 0]]
    assert matches.missed.tolist() == [1]
    assert matches.invented.tolist() == [1, 2]
    assert matches.f1 == pytest.approx(2 / 5)
    assert match(labels(), answer(), same_class=True).f1 == 1


def test_what_lies_in_a_crowd_is_neither_right_nor_invented() -> None:
    crowd = [0.0, 0.0, 40.0, 40.0]
    ground_truth = labels((crowd, 0), crowd=0)
    matches = match(
        ground_truth, answer((LEFT, 0), (RIGHT, 0), (NOWHERE, 0), (LEFT, 1)), same_class=True
    )
    assert matches.pairs.tolist() == matches.missed.tolist() == []
    assert matches.invented.tolist() == [2, 3]


def test_confusion_by_hand() -> None:
    first = labels((LEFT, 0), (RIGHT, 1)), answer((LEFT, 0), (RIGHT, 0))
    second = labels((LEFT, 1)), answer((NOWHERE, 1))
    assert confusion_matrix([first, second], 2).tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]


def test_the_worst_images_come_first_and_good_ones_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(plain(1, 2)))
    names = ["good", "half", "bad", "worse"]
    images = []
    for number, name in enumerate(names):
        (tmp_path / f"{name}.png").write_bytes(path.read_bytes())
        images.append(LabelledImage(number, tmp_path / f"{name}.png"))
    ground_truth = [labels((LEFT, 0), (RIGHT, 0))] * 4
    answers = [
        answer((LEFT, 0), (RIGHT, 0)),
        answer((LEFT, 0)),
        answer(),
        answer((NOWHERE, 0), (NOWHERE, 0)),
    ]
    model = ModelUnderTest("m", "1", "center_boxes", ("a",), 0.3, 100, "engine", "offline")
    titles = [figure.title for figure in worst_images(images, ground_truth, answers, model)]
    assert [title.partition(".png")[0] for title in titles] == ["worse", "bad", "half"]
    assert "F1 0.00, 2 missed, 2 invented" in titles[0]
    assert "F1 0.67, 1 missed, 0 invented" in titles[2]


def test_speed_by_hand() -> None:
    run = Run([], latencies_s=[0.1, 0.2, 0.3], wall_s=2.0)
    assert run.speed() == pytest.approx(
        {"images_per_s": 1.5, "latency_p50_ms": 200, "latency_p95_ms": 290}
    )


def test_a_report_escapes_names_and_appears_whole(tmp_path: Path) -> None:
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
    report.parts.append(Figure("no", "no/such/folder.png", b""))
    with pytest.raises(OSError, match="folder"):
        write_report(report, tmp_path / "other")
    assert list(tmp_path.iterdir()) == [output]


def test_missing_parts_are_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("evaluation.cli", "evaluation.evaluate", "evaluation.metrics.coco"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr("evaluation.cli", raising=False)
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "pycocotools.cocoeval is not installed" in capsys.readouterr().err
