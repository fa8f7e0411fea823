"""A labelled folder becomes a served model with three commands and no configuration."""

import json
import os
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.scenes import CLASSES, write_boxes
from support.serving import run_server
from support.timm_models import require_timm

from model_export.__main__ import main as export
from service.model_registry import load_models
from service.settings import Settings
from training.cli import main as train

pytestmark = pytest.mark.skipif(
    not os.environ.get("HEAVY_TESTS"), reason="trains for minutes: set HEAVY_TESTS=1"
)

IMAGES = 60
UNSEEN = 12


def write_coco(folder: Path) -> None:
    """Write labels.json beside the images."""
    write_boxes(folder, IMAGES)


def write_yolo(folder: Path) -> None:
    """Write data.yaml, images and labels, split into train and val."""
    document = json.loads(write_boxes(folder, IMAGES).read_text())
    (folder / "labels.json").unlink()
    for index, image in enumerate(document["images"]):
        split = "val" if index % 10 == 0 else "train"
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        name = image["file_name"]
        (folder / name).rename(folder / "images" / split / name)
        lines = []
        for entry in document["annotations"]:
            if entry["image_id"] == image["id"]:
                x, y, width, height = (value / 128 for value in entry["bbox"])
                box = (x + width / 2, y + height / 2, width, height)
                lines.append(" ".join(map(str, (entry["category_id"], *box))))
        (folder / "labels" / split / f"{Path(name).stem}.txt").write_text("\n".join(lines))
    (folder / "data.yaml").write_text(
        f"train: images/train\nval: images/val\nnames: {list(CLASSES)}\n"
    )


def printed_command(output: str, title: str) -> list[str]:
    (line,) = (line for line in output.splitlines() if line.startswith(f"{title}: "))
    return shlex.split(line.removeprefix(f"{title}: "))


@pytest.mark.parametrize("write", [write_coco, write_yolo])
def test_a_folder_becomes_a_served_model(
    write: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    write(tmp_path / "shapes")
    run_three_commands("shapes", tmp_path, capsys)


def test_a_backbone_of_timm_becomes_a_served_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require_timm()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    write_coco(tmp_path / "shapes")
    (tmp_path / "mobilenet.toml").write_text(
        'architecture = "timm/mobilenetv3_small_100"\n'
        '[data]\nfolder = "shapes"\n[schedule]\nepochs = 15\n'
    )
    run_three_commands("mobilenet.toml", tmp_path, capsys)


def run_three_commands(source: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Train on ``source`` in the working directory, export, serve, and detect unseen objects."""
    train([source, "--device", "cpu"])
    output = capsys.readouterr().out
    (log,) = directory.glob("runs/*/epochs.jsonl")
    with capsys.disabled():
        print(f"\n{output}{log.read_text().splitlines()[-1]}")

    assert export(printed_command(output, "Export it")[1:]) == 0
    program, option, models = printed_command(output, "Serve it")
    assert (program, option) == ("centernet-serve", "--models")

    (directory / "unseen").mkdir()
    document = json.loads(write_boxes(directory / "unseen", IMAGES + UNSEEN).read_text())
    labelled = correct = 0
    with run_server(partial(load_models, report_step=print), Settings(models=models)) as server:
        for image in document["images"][IMAGES:]:
            content = (directory / "unseen" / image["file_name"]).read_bytes()
            detections = server.client.post("/detect", content=content).json()["detections"]
            for label in (a for a in document["annotations"] if a["image_id"] == image["id"]):
                labelled += 1
                # By descending score: the first is the class that the network prefers.
                classes = [d["class_id"] for d in detections if overlaps(d, label)]
                correct += classes[:1] == [label["category_id"]]
    with capsys.disabled():
        print(f"{correct} of {labelled} unseen objects have a box (IoU 0.5) of their class")
    assert correct >= 0.8 * labelled


def overlaps(detection: dict[str, Any], label: dict[str, Any]) -> bool:
    """Return whether the boxes have an IoU of 0.5 or more."""
    x1, y1, x2, y2 = detection["bbox"]
    x, y, width, height = label["bbox"]
    shared = max(0, min(x2, x + width) - max(x1, x)) * max(0, min(y2, y + height) - max(y1, y))
    return shared >= 0.5 * ((x2 - x1) * (y2 - y1) + width * height - shared)
