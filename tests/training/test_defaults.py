"""Defaults that depend on the data."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from support.scenes import KEYPOINTS, write_boxes, write_boxes_3d, write_poses
from torch import nn

from training import precision, trainer
from training.cli import main
from training.config import ConfigError, TrainConfig, validate
from training.defaults import prepare
from training.precision import PrecisionChoice, choose_precision
from training.trainer import Trainer


def config_file(directory: Path, text: str) -> Path:
    (directory / "config.toml").write_text(text)
    return directory / "config.toml"


def test_a_folder_of_boxes(tmp_path: Path) -> None:
    write_boxes(tmp_path, 20)
    run = prepare(tmp_path)
    config = run.config
    assert (config.architecture, config.task, config.normalization) == (
        *("hourglass_tiny", "boxes"),
        "coco",
    )
    assert config.classes == ("disc", "square")
    assert (config.input_width, config.input_height) == (128, 128)
    assert config.data.repeats * 18 >= 200
    assert config.schedule.epochs * config.data.repeats * 18 == pytest.approx(4000, rel=0.1)
    assert config.schedule.batch_size == 4  # two or three objects per image
    assert "COCO labels: 18 images" in run.choices[0]
    assert "2 of the images split off" in run.choices[0]
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


def test_a_folder_of_poses(tmp_path: Path) -> None:
    write_poses(tmp_path, 10)
    config = prepare(tmp_path).config
    assert (config.task, config.keypoints) == ("poses", KEYPOINTS)
    assert (config.architecture, config.input_width % 128) == ("hourglass_tiny", 0)
    boxes = prepare(
        config_file(tmp_path, f'task = "boxes"\n[data]\nfolder = "{tmp_path}"\n')
    ).config
    assert (boxes.task, boxes.keypoints, boxes.architecture) == ("boxes", (), "hourglass_tiny")


def test_a_folder_in_which_one_class_has_keypoints(tmp_path: Path) -> None:
    write_poses(tmp_path, 10)
    (path,) = tmp_path.rglob("*.json")
    document = json.loads(path.read_text())
    (with_keypoints,) = document["categories"]
    document["categories"].append({"id": 77, "name": "ball"})
    ball = {**document["annotations"][0], "id": 777, "category_id": 77}
    del ball["keypoints"]
    document["annotations"].append(ball)
    path.write_text(json.dumps(document))
    run = prepare(tmp_path)
    config = run.config
    assert (config.task, config.keypoints) == ("poses", KEYPOINTS)
    assert config.classes == (with_keypoints["name"], "ball")
    assert config.keypoint_classes == (with_keypoints["name"],)
    assert f"keypoints of {with_keypoints['name']}: " in "\n".join(run.choices)
    assert run.data is not None
    present = np.concatenate([~np.isnan(one.keypoints[:, 0, 0]) for _, one in run.data.train.files])
    classes = np.concatenate([one.class_ids for _, one in run.data.train.files])
    assert (present == (classes == 0)).all()
    with pytest.raises(ConfigError, match=r"keypoint_classes are \['cat'\]; accepted are"):
        validate(TrainConfig, {**config.model_dump(), "keypoint_classes": ["cat"]}, "x")


def test_a_folder_of_3d_boxes(tmp_path: Path) -> None:
    (tmp_path / "image_2").mkdir()
    (tmp_path / "label_2").mkdir()
    (tmp_path / "calib").mkdir()
    write_boxes_3d(tmp_path, 2)
    for path in tmp_path.glob("0*.png"):
        path.rename(tmp_path / "image_2" / path.name)
    for path in tmp_path.glob("0*.txt"):
        path.rename(tmp_path / "label_2" / path.name)
    (tmp_path / "calib/000000.txt").write_text(f"P2: {' '.join(map(str, range(12)))}\n")
    run = prepare(tmp_path)
    assert (run.config.task, run.config.classes) == ("boxes_3d", ("Car",))
    assert run.config.normalization == "imagenet"
    assert run.config.augmentation.fixed_probability == 0.5
    assert run.projection == tuple(range(12))


@pytest.mark.parametrize(
    ("architecture", "image", "box", "expected"),
    [
        ("res_18_slim", (640, 480), 40, (384, 288)),  # 24 px of 40
        ("res_18_slim", (1920, 1080), 40, (512, 288)),  # the largest input
        ("res_18_slim", (1920, 1080), 1000, (128, 96)),  # the smallest
        ("res_18_slim", (100, 80), 10, (128, 128)),
        ("res_18_slim", (480, 640), 40, (384, 384)),  # the scale follows the longer side
        ("hourglass_tiny", (640, 480), 40, (384, 384)),  # multiples of 128
        ("hourglass_tiny", (1920, 1080), 1000, (128, 128)),
    ],
)
def test_input_size(
    tmp_path: Path,
    architecture: str,
    image: tuple[int, int],
    box: int,
    expected: tuple[int, int],
) -> None:
    width, height = image
    cv2.imwrite(str(tmp_path / "0.png"), np.zeros((height, width, 3), np.uint8))
    document = {
        "images": [{"id": 0, "file_name": "0.png", "width": width, "height": height}],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, box, box]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "labels.json").write_text(json.dumps(document))
    text = f'architecture = "{architecture}"\n[data]\nfolder = "{tmp_path}"\n'
    config = prepare(config_file(tmp_path, text)).config
    assert (config.input_width, config.input_height) == expected


def test_keys_of_a_config_are_kept(tmp_path: Path) -> None:
    write_boxes(tmp_path, 4)
    text = f"""
        architecture = "hourglass_tiny"
        input_width = 256
        [data]
        images = "{tmp_path}"
        train = ["{tmp_path}/labels.json"]
        [augmentation]
        flip = false
        [schedule]
        epochs = 3
        """
    config = prepare(config_file(tmp_path, text)).config
    assert (config.architecture, config.input_width, config.schedule.epochs) == (
        *("hourglass_tiny", 256),
        3,
    )
    assert config.classes == ("disc", "square")
    assert (config.augmentation.flip, config.augmentation.scale) == (False, (0.75, 1.4))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"data: nothing to train on; set folder, train and repeats"),
        ('task = "bokses"', r"task is 'bokses'; accepted: boxes, poses"),
        ('architecture = "res_19"', r"there is no architecture 'res_19'\. Accepted: res_18"),
        ("epochs = 3", r"epochs is not a key; accepted: architecture, task"),
        ("[schedule]\nepoch = 3", r"schedule\.epoch is not a key; accepted: epochs, batch_size"),
        ("schedule = 3", r"schedule is '3'; expected a table \[schedule\]"),
        ("[data]\nfolders = 3", r"data: folders is not a key; accepted: folder, format"),
        ("[schedule]\nepochs = 0", r"schedule\.epochs: Input should be greater .* not '0'\.$"),
        ('seed = "a"', r"seed: Input should be a valid integer.*, not 'a'\.$"),
    ],
)
def test_errors_are_sentences(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(config_file(tmp_path, text))


def test_a_folder_has_no_extreme_points(tmp_path: Path) -> None:
    write_boxes(tmp_path, 4)
    text = f'task = "extreme_points"\n[data]\nfolder = "{tmp_path}"\n'
    with pytest.raises(ConfigError, match="a folder has no extreme points; set train to COCO"):
        prepare(config_file(tmp_path, text))


def test_the_commands_that_follow_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my shapes").mkdir()
    write_boxes(tmp_path / "my shapes", 4)
    monkeypatch.setattr(Trainer, "run", lambda _: None)
    main(["my shapes", "--device", "cpu"])
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "Export it: centernet-export package --checkpoint runs/my_shapes/best.pth "
        "--output models/my_shapes",
        "Serve it: centernet-serve --models models/my_shapes",
    ]
    (tmp_path / "runs/my_shapes").mkdir(parents=True)
    (tmp_path / "runs/my_shapes/last.pth").touch()
    with pytest.raises(SystemExit):
        main(["my shapes", "--device", "cpu"])
    assert "continue it with --resume" in capsys.readouterr().err


class _Clock:
    """A clock that steps in bfloat16 and float32 advance by different durations."""

    def __init__(self, bfloat16_s: float) -> None:
        self.now = 0.0
        self._bfloat16_s = bfloat16_s

    def loss(self, network: nn.Module, dtype: torch.dtype) -> torch.Tensor:
        self.now += self._bfloat16_s if dtype == torch.bfloat16 else 1.0
        return network(torch.ones(2, 2)).sum()


@pytest.mark.parametrize(
    ("bfloat16_s", "chosen", "reason"),
    [
        (0.5, "bfloat16", "takes 2.00 times"),
        (0.95, "float32", "takes 1.05 times"),
    ],
)
def test_the_faster_precision_is_chosen(
    monkeypatch: pytest.MonkeyPatch, bfloat16_s: float, chosen: str, reason: str
) -> None:
    clock = _Clock(bfloat16_s)
    monkeypatch.setattr(precision.time, "process_time", lambda: clock.now)
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, momentum=None)).eval()
    choice = choose_precision(network, clock.loss)
    assert (choice.precision, reason in choice.reason) == (chosen, True)
    # The trial leaves the network as it is.
    assert not network.training
    assert network[1].num_batches_tracked == 0
    assert network[0].weight.grad is None


@pytest.mark.parametrize("has_instructions", [True, False])
def test_the_network_computes_in_the_chosen_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_instructions: bool
) -> None:
    write_boxes(tmp_path, 2)
    monkeypatch.setattr(trainer, "has_bfloat16", lambda: has_instructions)
    choice = PrecisionChoice("bfloat16", "for the test")
    monkeypatch.setattr(trainer, "choose_precision", lambda *_: choice)
    text = f'architecture = "res_18_slim"\n[data]\nfolder = "{tmp_path}"\n[schedule]\nepochs = 1\n'
    config = prepare(config_file(tmp_path, text)).config
    config = config.model_copy(
        update={"loader_workers": 0, "data": config.data.model_copy(update={"repeats": 4})}
    )
    run = Trainer(config, tmp_path / "run", quiet=True)
    dtypes = set()
    run.network.heads["size"].register_forward_hook(
        lambda _, __, output: dtypes.add(("maps", output.dtype))
    )
    objective = run._objective

    def terms(maps: Any, targets: Any) -> Any:
        dtypes.add(("losses", maps["size"].dtype))
        return objective.terms(maps, targets)

    run._objective = replace(objective, terms=terms)
    run.run()
    expected = torch.bfloat16 if has_instructions else torch.float32
    assert dtypes == {("maps", expected), ("losses", torch.float32)}
    stored = torch.load(tmp_path / "run/last.pth", weights_only=True)["precision"]
    assert stored == str(expected).removeprefix("torch.")
    # A resumed run does not try again.
    monkeypatch.setattr(trainer, "choose_precision", None)
    assert Trainer(config, tmp_path / "run", resume=True, quiet=True)._precision == stored


def test_all_configs_of_the_project_are_complete(project: Path) -> None:
    for path in sorted((project / "training/configs").glob("*.toml")):
        assert prepare(path).choices == (), path
