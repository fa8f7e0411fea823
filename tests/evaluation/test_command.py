"""``centernet-eval`` on real packages and real servers."""

import http.server
import json
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.constant_model import write_constant_package
from support.images import encode, plain
from support.serving import FixedEngine, make_manifest, one_model, run_server
from support.tasks import (
    BOXES_3D,
    BOXES_3D_ROWS,
    CANVAS_3D,
    CORNER_CANVAS,
    EXTREME_POINT_ROWS,
    EXTREME_POINTS,
    POSE_ROWS,
    POSES,
    POSES_AND_BOXES_3D,
    POSES_AND_BOXES_3D_ROWS,
)

from evaluation.cli import main
from model_package import CornerTripletsDecoder, Decoder
from service.model_registry import load_models
from service.settings import Settings


def evaluate(*arguments: object) -> dict[str, Any]:
    output = Path(str(arguments[-1]))
    main([str(argument) for argument in arguments])
    metrics: dict[str, Any] = json.loads((output / "results.json").read_text())
    return metrics


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == 1
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def blood_cells(project: Path) -> Iterator[str]:
    chosen = Settings(models=project / "models/blood_cells", self_test_interval_s=0)

    with run_server(lambda settings, metrics: load_models(settings, metrics, print), chosen) as one:
        yield one.url


@pytest.fixture
def smears(project: Path) -> list[object]:
    samples = project / "docs/samples"
    return ["--annotations", samples / "blood_smears.json", "--images", samples]


def test_offline_and_http_evaluation_give_the_same_detections(
    blood_cells: str, smears: list[object], project: Path, tmp_path: Path
) -> None:
    package = project / "models/blood_cells"
    offline = evaluate(*smears, "--package", package, "--output", tmp_path / "offline")
    over_http = evaluate(
        *smears, "--url", blood_cells, "--model", "blood_cells", "--output", tmp_path / "runs/http"
    )
    found = [(tmp_path / way / "detections.json").read_text() for way in ("offline", "runs/http")]
    assert found[0] == found[1]
    assert len(json.loads(found[0])) == 400
    for part in ("boxes", "false_discovery"):
        assert offline[part] == over_http[part]
    assert offline["boxes"]["all"]["AP50"] > 0.85
    assert offline["speed"]["images_per_s"] > 0


def test_the_steps_are_shown_unless_quiet(
    smears: list[object],
    project: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    package = project / "models/blood_cells"
    evaluate(*smears, "--package", package, "--output", tmp_path / "report")
    steps = re.findall(r"^\[./5\] (.*) \.\.\. \d+\.\d s$", capsys.readouterr().err, re.M)
    assert [step.partition(" ")[0] for step in steps] == [
        *("Read", "Load", "Detect", "Compute", "Write")
    ]
    evaluate("--quiet", *smears, "--package", package, "--output", tmp_path / "quiet")
    assert capsys.readouterr().err == ""


def test_an_interruption_ends_the_step(
    smears: list[object],
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("evaluation.cli.evaluate", interrupt)
    with pytest.raises(SystemExit) as caught:
        evaluate(
            *smears, "--package", project / "models/blood_cells", "--output", tmp_path / "report"
        )
    assert caught.value.code == 130
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "[4/5] Compute the metrics ... interrupted"
    assert not (tmp_path / "report").exists()


def table_rows(page: str, title: str) -> list[list[str]]:
    """Return the cells of the tables of a section of ``report.html``."""
    (section,) = re.findall(rf">{re.escape(title)}</h2>(.*?)</section>", page, re.DOTALL)
    rows = re.findall(r"<tr>(.*?)</tr>", section, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_the_report_is_complete(
    smears: list[object],
    project: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    output = tmp_path / "report"
    # The model makes no error in the samples; without some of the labels it has false positives.
    labels = json.loads((project / "docs/samples/blood_smears.json").read_text())
    del labels["annotations"][::10]
    annotations = tmp_path_factory.mktemp("labels") / "labels.json"
    annotations.write_text(json.dumps(labels))
    where = ["--annotations", annotations, *smears[2:]]
    evaluate(*where, "--package", project / "models/blood_cells", "--output", output)
    markdown = (output / "report.md").read_text("utf-8")
    page = (output / "report.html").read_text("utf-8")
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert 0 < len(sources) <= 6
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert {one[0] for one in re.findall(r'href="([^"]+)"', page)} == {"#"}
    assert "<script" not in page
    for title in ("Boxes (COCO)", "Errors by kind", "Scores", "False discovery", "Speed"):
        assert f"## {title}\n" in markdown
        assert f">{title}</h2>" in page
    for title in ("Precision and recall", "Worst images"):
        assert f">{title}</h2>" in page
    assert {path.name for path in output.iterdir()} == {
        *("report.html", "report.md", "results.json", "detections.json")
    }
    assert list(tmp_path.iterdir()) == [output]


def test_the_report_shows_the_numbers_of_the_results(
    smears: list[object], project: Path, tmp_path: Path
) -> None:
    output = tmp_path / "report"
    metrics = evaluate(*smears, "--package", project / "models/blood_cells", "--output", output)
    page = (output / "report.html").read_text("utf-8")
    summary = metrics["boxes"]["all"]
    rows = table_rows(page, "Boxes (COCO)")
    assert rows[0] == list(summary)
    assert rows[1] == [f"{value:.3f}" for value in summary.values()]
    for row, (name, values) in zip(rows[3:], metrics["boxes"]["per_class"].items(), strict=True):
        assert row[0] == name
        assert row[2:5] == [f"{value:.3f}" for value in values]
        assert row[5:8] == [f"{value:.3f}" for value in metrics["at_threshold"][name].values()]
    errors = metrics["errors"]
    rows = table_rows(page, "Errors by kind")
    shown = {row[0]: row[1] for row in rows}
    for kind, gain in errors["dap50"].items():
        assert shown[kind] == f"{gain:.3f}"
    for kind, count in errors["at_threshold"].items():
        assert [row[2] for row in rows if row[0] == kind] == [str(count)]
    matrix = [row[1:] for row in table_rows(page, "Confusion matrix at score 0.3 and IoU 0.5")[1:]]
    for row, column, count in metrics["confusions"]:
        assert matrix[row][column] == str(count)
    assert sum(int(cell) > 0 for row in matrix for cell in row) == len(metrics["confusions"])
    # The same detections match in the matrix and in the curves by score.
    found = sum(count for row, column, count in metrics["confusions"] if row == column)
    objects = sum(metrics["boxes"]["objects_by_size"].values())
    assert metrics["at_threshold"]["all"]["recall"] == pytest.approx(found / objects)
    # The areas under the mean curves are the APs of the summary.
    for name, text in re.findall(r": (AP\w*) ([0-9.]+)</li>", page):
        assert text == f"{summary[name]:.3f}"


def test_a_run_is_compared_with_an_earlier_one(
    smears: list[object], project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluation.metrics.bootstrap.RESAMPLES", 20)
    where = [*smears, "--package", project / "models/blood_cells"]
    first = evaluate(*where, "--output", tmp_path / "first")
    path = tmp_path / "first/detections.json"
    rows = json.loads(path.read_text())
    again = [*where, "--compare", tmp_path / "first"]
    same = evaluate(*again, "--output", tmp_path / "same")["comparison"]["boxes"]
    for name, value in first["boxes"]["all"].items():
        assert (same[name]["reference"], same[name]["difference"]) == (value, 0)
    assert [same[name]["interval"] for name in ("AP", "AP50", "AP75")] == [[0, 0]] * 3
    assert same["APs"]["interval"] is None
    assert "Both runs have the same detections" in (tmp_path / "same/report.html").read_text()

    # Half of the detections are lost: less AP in every resample.
    path.write_text(json.dumps(rows[::2]))
    better = evaluate(*again, "--output", tmp_path / "better")["comparison"]["boxes"]["AP"]
    low, high = better["interval"]
    assert 0 < low <= better["difference"] <= high
    page = (tmp_path / "better/report.html").read_text("utf-8")
    shown = table_rows(page, "Comparison of boxes")[1]
    assert "4 of 4 images have any; those with the most come first" in page
    assert page.count(" only in the reference, ") == 2 * 4  # captions and text alternatives
    assert shown[3:] == [f"{better['difference']:+.4f}", f"{low:+.4f} to {high:+.4f}"]


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("results.json", '"labels_sha256": "', '"labels_sha256": "0', "classes differ"),
        ("results.json", '"task": "boxes"', '"task": "poses"', "evaluated poses, this one boxes"),
        ("results.json", '"engine"', '"motor"', "model.engine: Field required"),
        ("results.json", "{", "[" * 100_000, "Run centernet-eval again"),
        ("detections.json", '"category_id": 1', '"category_id": 3', "is not a class"),
        ("detections.json", '"image_id": 1', '"image_id": 99', "does not belong to these labels"),
        ("detections.json", '"score": 0.', '"score": 7.', "score: Input should be less than"),
        ("detections.json", '"bbox": [', '"bbox": [NaN, ', "bbox"),
        ("detections.json", "[{", "[" + " " * 500_000 + "{", "the limit here"),
    ],
)
def test_an_earlier_run_that_cannot_be_compared_is_reported(
    smears: list[object],
    project: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    compared: Path,
    file: str,
    old: str,
    new: str,
    message: str,
) -> None:
    earlier = tmp_path / "earlier"
    shutil.copytree(compared, earlier)
    path = earlier / file
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))
    where = [*smears, "--package", project / "models/blood_cells", "--compare", earlier]
    assert message in error_of(capsys, *where, "--output", tmp_path / "report")
    assert list(tmp_path.iterdir()) == [earlier]


@pytest.fixture(scope="module")
def compared(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "compared"
    samples = project / "docs/samples"
    where = ["--annotations", samples / "blood_smears.json", "--images", samples]
    evaluate(*where, "--package", project / "models/blood_cells", "--output", output)
    return output


def test_the_bundled_model_has_the_documented_scores(
    shared: Path, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CENTERNET_PRECISION", "fp32")  # bf16 changes the third decimal
    data = shared / "data/bccd"
    where = ["--annotations", data / "test.json", "--images", data / "images"]
    package = project / "models/blood_cells"
    metrics = evaluate(*where, "--package", package, "--output", tmp_path / "report")
    for line, part in (("BCCD `test` | 36", "boxes"), ("BCCD `test` | 8", "false_discovery")):
        row = next(
            r for r in (project / "docs/evaluation.md").read_text().splitlines() if line in r
        )
        shown = [float(cell) for cell in re.findall(r"\| \**(\d+\.\d+)", row)]
        found = metrics[part]["all"] if part == "boxes" else metrics[part]
        scale, digit = (1, 1e-3) if part == "boxes" else (100, 0.1)
        # Half a digit of rounding, and processors with other vector units.
        assert [scale * value for value in found.values()] == pytest.approx(shown, abs=digit)


def write_image(directory: Path) -> None:
    (directory / "a.png").write_bytes(encode(plain(1, 2, 3)))


def coco_file(directory: Path, *labels: dict[str, Any], **category: Any) -> list[object]:
    write_image(directory)
    path = directory / "labels.json"
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
        "annotations": [{"image_id": 1, "category_id": 1, **label} for label in labels],
        "categories": [{"id": 1, "name": "red", **category}],
    }
    path.write_text(json.dumps(document))
    return ["--annotations", path, "--images", directory]


KEYPOINTS = {"bbox": [24, 16, 16, 32], "keypoints": [32, 20, 2, 32, 56, 2]}
"""What :data:`support.tasks.POSE_ROWS` finds first, but the tail 10 pixels further down."""


def test_poses_of_any_number_of_keypoints(tmp_path: Path) -> None:
    manifest = make_manifest(POSES)
    with run_server(one_model(FixedEngine(POSE_ROWS), manifest), Settings()) as server:
        labelled = coco_file(tmp_path, KEYPOINTS, keypoints=["nose", "tail"])
        where = [*labelled, "--url", server.url]
        keypoints = evaluate(*where, "--output", tmp_path / "pck")["keypoints"]
        assert keypoints["names"] == ["nose", "tail", "all"]
        assert keypoints["mean_error_px"] == pytest.approx([0, 10, 5])
        # The pose is 36 pixels long.
        assert keypoints["pck"] == {"0.05": [1, 0, 0.5], "0.1": [1, 0, 0.5], "0.2": [1, 0, 0.5]}
        assert "give sigmas" in (tmp_path / "pck/report.md").read_text()
        strict = evaluate(*where, "--sigmas", 0.05, 0.05, "--output", tmp_path / "strict")["poses"]
        loose = evaluate(*where, "--sigmas", 1, 1, "--output", tmp_path / "loose")["poses"]
        assert strict["all"]["AP"] == pytest.approx(0.1)  # (1 + exp(-9.8)) / 2: at 0.5 only
        assert loose["all"]["AP"] == pytest.approx(1)
        assert (
            evaluate(*where, "--task", "boxes", "--output", tmp_path / "boxes")["task"] == "boxes"
        )


def test_masks_of_extreme_points(tmp_path: Path) -> None:
    manifest = make_manifest(EXTREME_POINTS)
    with run_server(one_model(FixedEngine(EXTREME_POINT_ROWS), manifest), Settings()) as server:
        # What the engine finds, in an image of 64x64 pixels: a box from (18, 14) to (66, 50).
        octagon = [28, 14, 40, 14, 66, 25.5, 66, 34.5, 36, 50, 24, 50, 18, 30.5, 18, 21.5]
        label = {"bbox": [18, 14, 48, 36], "segmentation": [octagon]}
        labelled = coco_file(tmp_path, label)
        where = [*labelled, "--url", server.url]
        metrics = evaluate(*where, "--output", tmp_path / "octagon")
        assert metrics["masks"]["all"]["AP75"] == pytest.approx(1)
        (found,) = json.loads((tmp_path / "octagon/detections.json").read_text())
        assert len(found["segmentation"][0]) == 16
        # The octagon covers 0.72 of its box: a match for IoU 0.50, 0.55 ... 0.70.
        box = [18, 14, 66, 14, 66, 50, 18, 50]
        labelled = coco_file(tmp_path, {**label, "segmentation": [box]})
        boxes = evaluate(*labelled, "--url", server.url, "--output", tmp_path / "box")
        assert boxes["boxes"] == metrics["boxes"]
        assert boxes["masks"]["all"]["AP"] == pytest.approx(0.5)
        labelled = coco_file(tmp_path, {"bbox": label["bbox"]})
        boxes = evaluate(*labelled, "--url", server.url, "--output", tmp_path / "none")
        assert "masks" not in boxes
        assert "has no valid segmentation" in (tmp_path / "none/report.md").read_text()


@pytest.mark.parametrize(
    ("decoder", "rows"),
    [(BOXES_3D, BOXES_3D_ROWS), (POSES_AND_BOXES_3D, POSES_AND_BOXES_3D_ROWS)],
)
def test_boxes_3d_over_http(
    tmp_path: Path, decoder: Decoder, rows: Mapping[str, NDArray[Any]]
) -> None:
    (tmp_path / "label_2").mkdir()
    (tmp_path / "calib").mkdir()
    write_image(tmp_path)
    (tmp_path / "a.png").rename(tmp_path / "000001.png")
    # What the engine finds first, seen by the file's camera. It must reach the service: with the
    # model's own, the box would be a metre higher.
    projection = "200 0 32 0 0 200 22 0 0 0 1 0"
    label = "green 0 0 -1.57 24 24 40 40 2 3 4 0 2 20 -1.57"
    (tmp_path / "label_2/000001.txt").write_text(label)
    (tmp_path / "calib/000001.txt").write_text(f"P2: {projection}\n")
    where = ["--annotations", tmp_path / "label_2", "--images", tmp_path]
    manifest = make_manifest(decoder, CANVAS_3D)
    with run_server(one_model(FixedEngine(rows), manifest), Settings()) as server:
        metrics = evaluate(*where, "--url", server.url, "--output", tmp_path / "report")
    assert metrics["task"] == "boxes_3d"
    assert metrics["boxes_3d"]["found"] == 1
    assert metrics["boxes_3d"]["depth"] == 0
    # Its center is 10 pixels under the principal point: 1 m at 20 m, and half the height more.
    assert metrics["boxes_3d"]["iou_3d"] == pytest.approx(1, abs=1e-3)
    assert metrics["kitti"]["green"].keys() == {"0.5", "0.25"}
    report = (tmp_path / "report/report.md").read_text()
    assert "| green | AOS | 0.5 | –" in report  # noqa: RUF001 (16 pixels: too low for KITTI)


def test_labels_choose_one_of_the_tasks_of_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label = {"bbox": [24, 24, 16, 16], "keypoints": [32, 20, 2, 32, 46, 2]}
    where = coco_file(tmp_path, label, name="green", keypoints=["nose", "tail"])
    rows, manifest = POSES_AND_BOXES_3D_ROWS, make_manifest(POSES_AND_BOXES_3D, CANVAS_3D)
    with run_server(one_model(FixedEngine(rows), manifest), Settings()) as server:
        where += ["--url", server.url]
        metrics = evaluate(*where, "--sigmas", 0.1, 0.1, "--output", tmp_path / "report")
        assert metrics["task"] == "poses"
        assert metrics["poses"]["all"]["AP"] == pytest.approx(1)
        error = error_of(capsys, *where, "--task", "boxes_3d", "--output", tmp_path / "other")
        assert "the labels have only 2D boxes" in error


def test_classes_without_keypoints_are_evaluated_as_boxes(tmp_path: Path) -> None:
    """Their detections are in the APs of boxes, not in those of poses."""
    labels = KEYPOINTS, {"bbox": [12, 12, 8, 8], "category_id": 2}
    where = coco_file(tmp_path, *labels, keypoints=["nose", "tail"])
    path = tmp_path / "labels.json"
    document = json.loads(path.read_text())
    document["categories"].append({"id": 2, "name": "blue"})
    path.write_text(json.dumps(document))
    decoder = POSES.model_copy(update={"keypoint_class_ids": (0,)})
    rows = {**POSE_ROWS, "class_ids": np.int32([0, 2])}
    with run_server(one_model(FixedEngine(rows), make_manifest(decoder)), Settings()) as server:
        where += ["--url", server.url, "--sigmas", 1, 1]
        metrics = evaluate(*where, "--output", tmp_path / "report")
        evaluate(*where, "--compare", tmp_path / "report", "--output", tmp_path / "compared")
    assert metrics["boxes"]["all"]["AP"] == pytest.approx(1)
    assert metrics["poses"]["per_class"].keys() == {"red"}
    assert metrics["poses"]["all"]["AP"] == pytest.approx(1)
    found = json.loads((tmp_path / "report/detections.json").read_text())
    assert ["keypoints" in one for one in found] == [True, False]
    assert found == json.loads((tmp_path / "compared/detections.json").read_text())


def test_labelled_centers_replace_predicted_centers(tmp_path: Path) -> None:
    """The predicted centers confirm one of two boxes, the labelled centers both."""
    rows = {
        "scores": np.float32([0.9, 0.6, -1]),
        "class_ids": np.zeros(3, np.int32),
        "boxes": np.float32([[8, 8, 16, 16], [17, 17, 23, 23], [1, 1, 2, 2]]),
        "corner_scores": np.float32([[0.9, 0.9], [0.6, 0.6], [0, 0]]),
        "centers": np.float32([[12, 12], [3, 3]]),
        "center_scores": np.float32([0.6, 0.5]),
        "center_class_ids": np.zeros(2, np.int32),
    }
    decoder = CornerTripletsDecoder(
        output_stride=4, pairs=3, top_k=5, score_threshold=0.1, centers=2
    )
    package = tmp_path / "package"
    write_constant_package(package, rows, decoder, CORNER_CANVAS)
    # An input of 127 pixels has 32 cells; the image of 64 pixels begins at pixel 31.
    boxes = [[cell * 127 / 32 - 31 for cell in box] for box in rows["boxes"][:2].tolist()]
    labels = [{"bbox": [x1, y1, x2 - x1, y2 - y1]} for x1, y1, x2, y2 in boxes]
    where = [*coco_file(tmp_path, *labels, name="a"), "--package", package]
    metrics = evaluate(*where, "--ground-truth-centers", "--output", tmp_path / "report")
    assert metrics["boxes"]["all"]["AR100"] == pytest.approx(0.5)
    assert metrics["with_ground_truth_centers"]["AR100"] == pytest.approx(1)
    assert metrics["with_ground_truth_centers"]["AP"] > metrics["boxes"]["all"]["AP"]
    assert "| ground truth |" in (tmp_path / "report/report.md").read_text()


def test_invalid_arguments_are_reported(
    blood_cells: str,
    smears: list[object],
    project: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    package, output = project / "models/blood_cells", tmp_path / "report"
    end = ["--output", output]
    where = [*smears, "--package", package]
    flat = coco_file(tmp_path, KEYPOINTS, keypoints=["nose", "tail"])
    served = ["--url", blood_cells, *end]
    assert "does not have" in error_of(capsys, *flat, *served)
    assert "detects boxes. Evaluate it with" in error_of(
        capsys, *smears, *served, "--task", "poses"
    )
    assert "only corner_triplets" in error_of(capsys, *where, "--ground-truth-centers", *end)
    assert "give --url" in error_of(capsys, *where, "--model", "x", *end)
    assert "is not a model package" in error_of(capsys, *smears, "--package", tmp_path, *end)
    assert "no model 'x'" in error_of(capsys, *smears, "--url", blood_cells, "--model", "x", *end)
    assert "cannot be reached" in error_of(capsys, *smears, "--url", "http://127.0.0.1:1", *end)
    (tmp_path / "a.png").unlink()
    assert "images are missing" in error_of(capsys, *flat, "--package", package, *end)
    assert not output.exists()
    output.mkdir()
    assert "already exists" in error_of(capsys, *where, *end)
    (tmp_path / "file").touch()
    assert "File exists" in error_of(capsys, *where, "--output", tmp_path / "file/report")
    earlier = ["--compare", tmp_path / "none", "--output", tmp_path / "new"]
    assert "--output of an earlier run" in error_of(capsys, *where, *earlier)


def test_a_damaged_image_is_reported_and_no_report_is_written(
    blood_cells: str,
    smears: list[object],
    project: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    samples = project / "docs/samples"
    for path in samples.glob("*.jpg"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "blood_smear_3.jpg").write_bytes(b"no image")
    for way in (["--package", project / "models/blood_cells"], ["--url", blood_cells]):
        error = error_of(
            *(capsys, *smears[:2], "--images", tmp_path, *way, "--output", tmp_path / "report")
        )
        assert "blood_smear_3.jpg: " in error
        assert not list(tmp_path.glob("*report*"))


def test_labels_without_keypoints_or_3d_boxes_are_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end = ["--output", tmp_path / "report"]
    flat = coco_file(tmp_path, {"bbox": [1, 1, 9, 9]})
    with run_server(one_model(FixedEngine(POSE_ROWS), make_manifest(POSES)), Settings()) as server:
        assert "labels have no keypoints" in error_of(capsys, *flat, "--url", server.url, *end)
        three = coco_file(tmp_path, KEYPOINTS | {"keypoints": [1, 1, 2] * 3})
        assert "labels have [3] keypoints" in error_of(capsys, *three, "--url", server.url, *end)
        two = coco_file(tmp_path, KEYPOINTS)
        error = error_of(capsys, *two, "--url", server.url, *end, "--sigmas", "0.1")
        assert "received 1; painted has 2 keypoints" in error
    boxes_3d = one_model(FixedEngine(BOXES_3D_ROWS), make_manifest(BOXES_3D, CANVAS_3D))
    with run_server(boxes_3d, Settings()) as server:
        assert "the labels have only 2D boxes" in error_of(capsys, *flat, "--url", server.url, *end)


def test_a_service_that_is_not_ready_is_reported(
    smears: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class NotReady(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"detail": "blood_cells is being timed. Try again."}).encode()
            self.send_response(503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Suppress the log."""

    with http.server.HTTPServer(("127.0.0.1", 0), NotReady) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        error = error_of(capsys, *smears, "--url", url, "--output", tmp_path / "report")
        server.shutdown()
    assert "503 blood_cells is being timed" in error


def test_a_service_that_needs_an_api_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key, keys = "k" * 32, tmp_path / "keys"
    keys.write_text(key)
    settings = Settings(api_keys_file=keys)
    with run_server(one_model(FixedEngine(POSE_ROWS), make_manifest(POSES)), settings) as server:
        where = [*coco_file(tmp_path, KEYPOINTS), "--task", "boxes", "--url", server.url]
        error = error_of(capsys, *where, "--output", tmp_path / "report")
        assert "401 The request has no API key" in error
        evaluate(*where, "--api-key", key, "--output", tmp_path / "option")
        monkeypatch.setenv("CENTERNET_API_KEY", key)
        evaluate(*where, "--output", tmp_path / "variable")
