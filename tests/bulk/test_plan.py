"""Plans, the detection of chunks, and the continuation of a run, without Ray."""

import json
import shutil
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.bulk_rows import check_row

from bulk.detection import ChunkDetector
from bulk.errors import BulkError
from bulk.plan import Plan, make_plan, missing_chunks, read_plan, result_file, write_plan
from bulk.results import SCHEMA, write_coco, write_results
from bulk.storage import Location, locate
from model_package import load_package
from service.detector import load_detector
from service.http.responses import to_json, to_response
from service.http.schemas import Detection

PACKAGE = Path(__file__).parents[2] / "models" / "blood_cells"
MANIFEST = load_package(PACKAGE).manifest
MODEL = {
    "model": MANIFEST.name,
    "version": MANIFEST.version,
    "options": {"score_threshold": 0.2},
}


@pytest.fixture
def images(project: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for number in (1, 2, 3, 4):
        shutil.copy(project / f"docs/samples/blood_smear_{number}.jpg", folder / "more")
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / "empty.png").touch()
    (folder / "notes.txt").touch()
    return folder


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CENTERNET_BACKEND", "onnxruntime-cpu")
    return PACKAGE


def detect(package: Path, plan: Plan, output: Location, chunks: list[int]) -> None:
    detector = ChunkDetector(str(package), plan.description)
    for chunk in chunks:
        (row,) = plan.chunks.slice(chunk, 1).to_pylist()
        write_results(output, chunk, detector.detect(row))


def test_a_run_is_continued_without_gap_or_double(
    images: Path, package: Path, tmp_path: Path
) -> None:
    output = locate((tmp_path / "out").as_uri())
    plan = make_plan(str(images), "image", 2, MODEL)
    write_plan(output, plan)
    assert missing_chunks(output, plan) == [0, 1, 2]
    detect(package, plan, output, [1])
    (images / "later.jpg").write_bytes(b"not part of the run")

    plan = read_plan(output, MODEL)
    assert plan is not None
    assert missing_chunks(output, plan) == [0, 2]
    detect(package, plan, output, [0, 2, 2])  # a repeated chunk replaces its file

    assert missing_chunks(output, plan) == []
    rows = pq.read_table(tmp_path / "out").to_pylist()
    names = ["damaged.jpg", "empty.png", *(f"more/blood_smear_{n}.jpg" for n in (1, 2, 3, 4))]
    assert [row["path"] for row in rows] == names
    assert [row["error"] for row in rows] == ["bad_image", "empty_body", None, None, None, None]
    with load_detector(package) as detector:
        for row in rows[2:]:
            prediction = detector.detect((images / row["path"]).read_bytes(), **MODEL["options"])
            expected = json.loads(to_json(to_response(detector.manifest, prediction, "")))
            assert len(row["detections"]) > 5
            check_row(row, expected)

    with (tmp_path / "coco.json").open("w") as file:
        write_coco(output, plan, MANIFEST, file)
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == names[2:]
    counts = Counter(one["image_id"] for one in coco["annotations"])
    assert [counts[image["id"]] for image in coco["images"]] == [
        len(row["detections"]) for row in rows[2:]
    ]
    assert [category["name"] for category in coco["categories"]] == ["RBC", "WBC", "Platelets"]


@pytest.mark.parametrize("name", ["model", "version", "options"])
def test_a_run_is_not_continued_with_another_model(name: str, images: Path, tmp_path: Path) -> None:
    output = locate(str(tmp_path / "out"))
    write_plan(output, make_plan(str(images), "image", 2, MODEL))
    with pytest.raises(BulkError, match=f"the run began with {name}"):
        read_plan(output, {**MODEL, name: "other"})


def test_images_and_paths_are_read_from_parquet(
    images: Path, package: Path, tmp_path: Path
) -> None:
    files = sorted(images.glob("more/*.jpg"))
    encoded = [file.read_bytes() for file in files]
    tables = tmp_path / "tables"
    tables.mkdir()
    columns = {"image": encoded, "file": [str(file) for file in (*files[:3], files[0])]}
    pq.write_table(pa.table(columns), tables / "a.parquet", row_group_size=3)
    output = locate(str(tmp_path / "out"))

    plan = make_plan(tables.as_uri(), "image", 2, MODEL)
    assert plan.chunks["count"].to_pylist() == [2, 1, 1]
    output.files.create_dir(output.path)
    detect(package, plan, output, [0, 1, 2])
    rows = pq.read_table(output.path).to_pylist()
    assert [row["path"] for row in rows] == [f"{tables}/a.parquet#{row}" for row in range(4)]
    assert all(row["detections"] for row in rows)

    plan = make_plan(str(tables / "a.parquet"), "file", 10, MODEL)
    assert plan.chunks["paths"].to_pylist() == [[str(file) for file in files[:3]]]
    detect(package, plan, output, [0])
    again = pq.read_table(f"{output.path}/{result_file(0)}").to_pylist()
    assert [row["detections"] for row in again] == [row["detections"] for row in rows[:3]]
    with pytest.raises(BulkError, match="has no column 'jpeg'"):
        make_plan(str(tables), "jpeg", 2, MODEL)


def test_a_row_has_every_field_of_a_detection() -> None:
    columns = SCHEMA.field("detections").type.value_type
    assert [field.name for field in columns] == [field.name for field in fields(Detection)]


def test_bytes_are_bounded(images: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CENTERNET_MAX_BODY_BYTES", "1024")
    plan = make_plan(str(images / "more"), "image", 10, MODEL)
    table = ChunkDetector(str(package), plan.description).detect(plan.chunks.to_pylist()[0])
    assert set(table["error"].to_pylist()) == {"body_too_large"}


def test_sources_that_cannot_be_used(tmp_path: Path) -> None:
    for source in ("ftp://host/images", str(tmp_path / "none"), str(tmp_path)):
        with pytest.raises(BulkError, match=source):
            make_plan(source, "image", 10, MODEL)
