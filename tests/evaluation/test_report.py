"""Reports: escaping, bounds, and drawings of the worst images."""

import io
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.images import encode, plain
from support.labelled import detections, labels

from evaluation.ground_truth import LabelledImage
from evaluation.metrics.coco import CocoScores
from evaluation.metrics.thresholds import ScoredDetections
from evaluation.model_under_test import ModelUnderTest
from evaluation.report import Report, write_report
from evaluation.sections import confusion_section, recall_curves, score_section
from evaluation.worst_images import differing_images, worst_images
from reports.charts import MAX_LINES, Chart, Line, Mark
from reports.page import Drawing, Section, Table, render_page

LEFT, RIGHT = [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]
NOWHERE = [50.0, 50.0, 60.0, 60.0]
MODEL = ModelUnderTest("m", "1", "center_boxes", ("a",), 0.3, 100, "engine", "offline")
HOSTILE = "\"'><script>alert(1)</script>&amp;"
NO_SCORES = np.array([], np.float64)


def test_reports_escape_names_and_are_written_atomically(tmp_path: Path) -> None:
    table = Table(["class", "AP"], [["<a|b>", float("nan")], ["c", 0.12345]], note="Note <.")
    section = Section("Classes", [table])
    report = Report("R & D", ["x < y"], [], [section], {"AP": [float("nan"), 0.5]})
    output = tmp_path / "report"
    write_report(report, output)
    assert r"| <a\|b> | – |" in (output / "report.md").read_text("utf-8")  # noqa: RUF001
    page = (output / "report.html").read_text("utf-8")
    assert '<th scope="row">&lt;a|b&gt;</th>' in page
    assert "Note &lt;." in page
    assert "<td>0.123</td>" in page
    assert '"AP": [\n  null,\n  0.5\n ]' in (output / "results.json").read_text()
    report.sections.append(Section("no", [Drawing("\ud800", b"", 1, 1)]))
    with pytest.raises(UnicodeEncodeError):
        write_report(report, tmp_path / "other")
    assert list(tmp_path.iterdir()) == [output]


def test_every_text_of_a_page_is_escaped() -> None:
    chart = Chart(HOSTILE, HOSTILE, HOSTILE, [Line(HOSTILE, [0], [0])], [Mark(HOSTILE, 0.5)])
    table = Table([HOSTILE], [[HOSTILE]], HOSTILE, HOSTILE)
    section = Section(HOSTILE, [chart, table, Drawing(HOSTILE, b"image", 1, 1)], HOSTILE)
    page = render_page(HOSTILE, [HOSTILE], [(HOSTILE, HOSTILE)], [section])
    assert "<script" not in page
    assert "&amp;amp;" in page
    # All attributes, in double quotes, and no attribute of a text.
    assert "\"'>" not in page
    assert "default-src 'none'" in page


def test_a_line_is_interrupted_where_it_has_no_value() -> None:
    chart = Chart("c", "x", "y", [Line("one", [0, 0.5, 0.7, 1], [0, math.nan, 1, 1])])
    (path,) = re.findall(r'class="line c0 d0" d="(M[^H]*)"', chart.html())
    assert path.count("M") == 2
    assert path.count("L") == 1


def test_shares_are_bounded_and_absent_for_nan() -> None:
    shares = {1: [-1.0, 2.0, math.nan]}
    html = Table(["", "AP"], [["a", 1.0], ["b", 1.0], ["c", 1.0]], shares=shares).html()
    assert re.findall(r"--share:([0-9.]+)", html) == ["0.000", "1.000"]


def test_many_classes_are_bounded() -> None:
    count = 300
    curves = {f"class {index}": np.full(101, index / count) for index in range(count)}
    mean = {"AP50": np.zeros(101)}
    section = recall_curves(CocoScores({}, {}, curves, mean), "IoU")
    _, by_class = section.blocks
    assert isinstance(by_class, Chart)
    names = [line.name.partition(":")[0] for line in by_class.lines]
    assert len(names) == MAX_LINES
    assert (names[0], names[-1]) == ("class 299", "class 0")
    assert "279 classes of middle AP50 are omitted" in section.note
    counts = np.zeros((count + 1, count + 1), np.int64)
    counts[3, 7], counts[3, 3], counts[5, count], counts[count, 5] = 4, 6, 100, 100
    (table,) = confusion_section(counts, list(curves), 0.3).blocks
    assert isinstance(table, Table)
    assert table.rows == [["class 3", "class 7", 4, 0.4]]


def test_the_confusion_matrix_shows_all_counts_of_few_classes() -> None:
    counts = np.array([[3, 1, 0], [0, 2, 2], [5, 0, 0]])
    (table,) = confusion_section(counts, ["a", "b"], 0.3).blocks
    assert isinstance(table, Table)
    assert table.rows == [["a", 3, 1, 0], ["b", 0, 2, 2], ["background", 5, 0, 0]]
    assert table.shares == {1: [0.75, 0, 1], 2: [0.25, 0.5, 0], 3: [0, 0.5, 0]}


def test_scores_without_detections_have_a_section() -> None:
    section = score_section(ScoredDetections(NO_SCORES, NO_SCORES, 3), 0.3)
    assert [type(block) for block in section.blocks] == [Chart, Chart, Table]
    assert "NaN" not in Report("r", sections=[section]).html()


def test_worst_images_are_sorted_and_images_without_errors_omitted(tmp_path: Path) -> None:
    images = []
    for number, name in enumerate(["good", "half", "bad", "worse"]):
        path = tmp_path / f"{name}.png"
        path.write_bytes(encode(plain(1, 2)))
        images.append(LabelledImage(number, path))
    ground_truth = [labels((LEFT, 0), (RIGHT, 0))] * 4
    images_detections = [
        detections((LEFT, 0), (RIGHT, 0)),
        detections((LEFT, 0)),
        detections(),
        detections((NOWHERE, 0), (NOWHERE, 0)),
    ]
    section = worst_images(images, ground_truth, images_detections, MODEL)
    assert [one.caption for one in section.blocks if isinstance(one, Drawing)] == [
        "worse.png: F1 0.00, 2 background, 2 missed",
        "bad.png: F1 0.00, 2 missed",
        "half.png: F1 0.67, 1 missed",
    ]
    none = worst_images(images[:1], ground_truth[:1], images_detections[:1], MODEL)
    assert none.blocks == []
    assert "No image has an error" in none.note


def colours_in(image: Image.Image) -> int:
    return len(image.getcolors(1 << 16) or ())


def test_the_images_in_which_two_runs_differ_most_come_first(tmp_path: Path) -> None:
    images = []
    for number, name in enumerate(["same", "moved", "other class", "lost", "found"]):
        path = tmp_path / f"{name}.png"
        Image.new("RGB", (64, 16)).save(path)
        images.append(LabelledImage(number, path))
    both, first = detections((LEFT, 0), (RIGHT, 0)), detections((LEFT, 0))
    near = [21.0, 0.0, 31.0, 10.0]
    found = [both, detections((LEFT, 0), (near, 0)), detections((LEFT, 0), (RIGHT, 1)), first, both]
    # The lost one has a higher score than the one that is found.
    lost = replace(both, scores=np.array([0.9, 0.85]))
    reference = [both, both, both, lost, first]
    ground_truth = [labels((LEFT, 0), (RIGHT, 0))] * 5
    model = replace(MODEL, classes=("a", "b"))
    section = differing_images(images, ground_truth, reference, found, model)
    drawings = [one for one in section.blocks if isinstance(one, Drawing)]
    assert [one.caption for one in drawings] == [
        "other class.png: 1 only in the reference, 1 only in this run, F1 1.000 and 0.500",
        "lost.png: 1 only in the reference, 0 only in this run, F1 1.000 and 0.667",
        "found.png: 0 only in the reference, 1 only in this run, F1 0.667 and 1.000",
    ]
    assert "3 of 5 images have any" in section.note
    # Only what differs is drawn: nothing on the right side, and not the object that both have.
    with Image.open(io.BytesIO(drawings[1].webp)) as drawn:
        left, right = drawn.crop((0, 0, 64, 16)), drawn.crop((72, 0, 136, 16))
        assert colours_in(right.crop((8, 0, 64, 16))) == 1
        assert colours_in(left.crop((0, 0, 12, 16))) == 1
        assert colours_in(left.crop((20, 0, 40, 16))) > 10
    same = differing_images(images[:2], ground_truth[:2], reference[:2], found[:2], model)
    assert same.blocks == []
    assert "Both runs have the same detections" in same.note


@pytest.mark.parametrize("size", [(4000, 3000), (10, 9000), (3000, 1)])
def test_drawings_are_bounded(tmp_path: Path, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(noise).save(path, compress_level=1)
    image = LabelledImage(1, path)
    section = worst_images([image], [labels((LEFT, 0))], [detections()], MODEL)
    (drawing,) = section.blocks
    assert isinstance(drawing, Drawing)
    assert len(drawing.webp) <= 250_000
    with Image.open(io.BytesIO(drawing.webp)) as drawn:
        assert drawn.size == (drawing.width_px, drawing.height_px)
        assert max(drawn.size) <= 2 * 640 + 8


def test_poses_are_ordered_by_their_keypoints(tmp_path: Path) -> None:
    images = [LabelledImage(number, tmp_path / f"{number}.png") for number in range(2)]
    for image in images:
        image.path.write_bytes(encode(plain(1, 2)))
    # One keypoint has no label; its detection is not an error.
    points = np.array([[[0.0, 0.0, 2.0], [10.0, 0.0, 2.0], [0.0, 0.0, 0.0]]])
    label = replace(labels((LEFT, 0)), keypoints=points)
    exact = np.array([[[0.0, 0.0, 1.0], [10.0, 0.0, 1.0], [7.0, 7.0, 1.0]]])
    moved = exact + np.array([0.0, 2.0, 0.0])
    found = [replace(detections((LEFT, 0)), keypoints=one) for one in (exact, moved)]
    section = worst_images(images, [label] * 2, found, MODEL)
    assert [one.caption for one in section.blocks if isinstance(one, Drawing)] == [
        "1.png: F1 1.00, mean error 0.200 (of the size of the pose)"
    ]
