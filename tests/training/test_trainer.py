import json
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support.configs import assert_refused, read_config
from support.connections import outside_calls_of

from model_export.architectures import ARCHITECTURES, box_head_channels
from model_export.graph.normalization import NORMALIZATIONS
from model_export.key_mappings.objects_as_points import to_network_key
from training.average_precision import evaluate
from training.cli import main
from training.data.coco import read_coco_split
from training.progress import TrainingProgress
from training.synthetic.blood_smears import coco_document, render_smear
from training.trainer import ResumeError, Trainer

CONFIG = """
architecture = "res_18_slim"
normalization = "coco"
classes = ["RBC", "WBC", "Platelets"]
input_width = 64
input_height = 64
train_crop = 64
image_width = 640
seed = 3
loader_workers = {workers}
precision = "float32"
[data]
images = "{directory}"
train = ["{directory}/smears.json"]
validation = "{directory}/smears.json"
repeats = {repeats}
rendered_per_epoch = 0
[augmentation]
scale = [1.0, 1.2]
brightness = 0.1
contrast = 0.1
saturation = 0.1
hue_degrees = 5
blur_probability = 0.1
[schedule]
epochs = {epochs}
batch_size = 2
learning_rate = 2e-3
weight_decay = 1e-3
warmup_steps = 2
average_decay = 0.9
gradient_clip = 10.0
"""


@pytest.fixture
def config_file(tmp_path: Path):
    images = [render_smear(np.random.default_rng(seed)) for seed in (1, 2)]
    for index, image in enumerate(images):
        cv2.imwrite(str(tmp_path / f"{index}.png"), image.pixels[..., ::-1])
    document = coco_document(images, ["0.png", "1.png"])
    (tmp_path / "smears.json").write_text(json.dumps(document))

    def write(epochs: int = 2, repeats: int = 1, workers: int = 0) -> Path:
        path = tmp_path / "configuration.toml"
        path.write_text(
            CONFIG.format(directory=tmp_path, epochs=epochs, repeats=repeats, workers=workers)
        )
        return path

    return write


def state_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


class PowerCutError(Exception):
    """Interrupts a run during an epoch."""


def test_a_resumed_run_ends_with_the_same_weights(config_file, tmp_path, monkeypatch) -> None:
    config = read_config(config_file(epochs=2))
    Trainer(config, tmp_path / "whole").run()

    halves = tmp_path / "halves"
    train_epoch = Trainer._train_epoch

    def stop_in_second(trainer: Trainer) -> dict[str, float]:
        if trainer._epoch == 1:
            raise PowerCutError
        return train_epoch(trainer)

    monkeypatch.setattr(Trainer, "_train_epoch", stop_in_second)
    with pytest.raises(PowerCutError):
        Trainer(config, halves).run()
    monkeypatch.undo()
    main([str(tmp_path / "configuration.toml"), "--output", str(halves), "--resume"])

    whole, resumed = state_of(tmp_path / "whole/last.pth"), state_of(halves / "last.pth")
    assert whole.keys() == resumed.keys()
    for key in whole:
        torch.testing.assert_close(resumed[key], whole[key], rtol=0, atol=0)
    lines = (halves / "epochs.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert {"heatmap", "ap", "ap50", "learning_rate", "seconds"} <= json.loads(lines[-1]).keys()


def test_the_logged_ap_is_that_of_the_saved_weights(config_file, tmp_path) -> None:
    config = read_config(config_file(epochs=1))
    Trainer(config, tmp_path / "run").run()
    network = ARCHITECTURES["res_18_slim"].build(box_head_channels(3))
    state = state_of(tmp_path / "run/last.pth")
    network.load_state_dict({to_network_key(key): value for key, value in state.items()})
    images = read_coco_split(tmp_path / "smears.json", tmp_path, config.classes).images
    normalization = NORMALIZATIONS[config.normalization]
    result = evaluate(network, images, config.classes, (64, 64), normalization)
    logged = json.loads((tmp_path / "run/epochs.jsonl").read_text())
    assert result.ap == logged["ap"]
    assert result.ap50_per_class == logged["ap50_per_class"]


def test_resuming_another_config_is_refused(config_file, tmp_path) -> None:
    Trainer(read_config(config_file(epochs=1)), tmp_path / "run").run()
    other = read_config(config_file(epochs=3))
    with pytest.raises(ResumeError, match="another configuration"):
        Trainer(other, tmp_path / "run", resume=True)


def test_the_best_checkpoint_fits_the_architecture(config_file, tmp_path) -> None:
    Trainer(read_config(config_file(epochs=1, workers=1)), tmp_path / "run").run()
    checkpoint = torch.load(tmp_path / "run/best.pth", weights_only=True)
    assert set(checkpoint) == {"epoch", "state_dict", "config"}
    assert {"conv1.weight", "deconv_layers.0.weight", "hm.2.bias", "wh.0.weight"} <= set(
        checkpoint["state_dict"]
    )
    network = ARCHITECTURES["res_18_slim"].build(box_head_channels(3))
    network.load_state_dict({to_network_key(k): v for k, v in checkpoint["state_dict"].items()})


def test_training_overfits_two_images(config_file, tmp_path) -> None:
    trainer = Trainer(read_config(config_file(epochs=1)), tmp_path / "run")
    batch = next(iter(trainer._loader()))
    trainer.network.train()
    for group in trainer._optimizer.param_groups:
        group["lr"] = 3e-3
    with torch.no_grad():
        before = float(trainer._objective.total(trainer._terms(trainer.network, batch)))
    for _ in range(40):
        trainer._step(batch)
    with torch.no_grad():
        after = float(trainer._objective.total(trainer._terms(trainer.network, batch)))
    assert after < 0.3 * before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("res_18_slim", "res_19", "there is no architecture 'res_19'"),
        ('"coco"', '"caffe"', "normalization must be one of"),
        ("input_width = 64", "input_width = 65", "multiple of 32"),
        ("batch_size = 2", "batch_size = 0", "greater than or equal to 1"),
        ("batch_size = 2", "batch_syze = 2", "batch_syze"),
        ("repeats = 1", "repeats = 0", "nothing to train on"),
        ("seed = 3", "seed = ", "configuration.toml"),
    ],
)
def test_an_invalid_config_is_refused(config_file, old: str, new: str, message: str) -> None:
    assert_refused(config_file(), old, new, message)


SMEARS = 'classes = ["RBC", "WBC", "Platelets"]'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (SMEARS, f'{SMEARS}\ntask = "poses"', "keypoints are required for task poses"),
        (SMEARS, f'{SMEARS}\ntask = "corner_pairs"', "task of res_18_slim must be one of"),
        (SMEARS, f'{SMEARS}\ntask = "boxes_3d"', "format coco has no labels for boxes_3d"),
        (SMEARS, 'classes = ["RBC", "RBC"]', "classes contains duplicates"),
        (
            "rendered_per_epoch = 0",
            "rendered_per_epoch = 5\nformat = 'voc'",
            "labels is the folder",
        ),
        ("scale = [1.0, 1.2]", "scale = [1.2, 1.0]", "but must be \\[smallest, largest\\]"),
        ('"res_18_slim"', '"hourglass_slim"', "must be a multiple of 128"),
    ],
)
def test_an_inconsistent_config_is_refused(config_file, old: str, new: str, message: str) -> None:
    assert_refused(config_file(), old, new, message)


def test_training_opens_no_connection(config_file, tmp_path, project) -> None:
    command = [sys.executable, "-m", "training", str(config_file(epochs=1))]
    command += ["--output", str(tmp_path / "run"), "--tensorboard"]
    assert outside_calls_of(command, tmp_path, project) == []


def test_tensorboard_holds_the_numbers_of_the_log(config_file, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    main([str(config_file(epochs=2)), "--output", str(run), "--device", "cpu", "--tensorboard"])
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (run / "epochs.jsonl").read_text().splitlines()]
    for name in ("heatmap", "size", "learning_rate", "ap"):
        scalars = events.Scalars(name)
        assert [point.step for point in scalars] == [1, 2]
        assert [point.value for point in scalars] == pytest.approx([line[name] for line in lines])
    assert len(events.Scalars("ap50_per_class/RBC")) == 2


def test_missing_tensorboard_is_reported_before_training(
    config_file, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SystemExit):
        main([str(config_file()), "--output", str(tmp_path / "run"), "--tensorboard"])
    assert "pip install" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_line_per_epoch_remains_on_standard_error(config_file, tmp_path, capsys) -> None:
    arguments = [str(config_file(epochs=2)), "--device", "cpu", "--output"]
    main([*arguments, str(tmp_path / "run")])
    lines = re.findall(r"^epoch \d/2: loss .*$", capsys.readouterr().err, re.M)
    log = [json.loads(line) for line in (tmp_path / "run/epochs.jsonl").read_text().splitlines()]
    for number, (line, entry) in enumerate(zip(lines, log, strict=True), start=1):
        loss = re.match(rf"epoch {number}/2: loss (\d+\.\d+), ", line)
        weighted = entry["heatmap"] + entry["offset"] + 0.1 * entry["size"]
        assert float(loss[1]) == pytest.approx(weighted, abs=1e-3)
        scores = f"ap {entry['ap']:.3f}, ap50 {entry['ap50']:.3f}"
        assert line.endswith(f", {scores}, {entry['seconds']} s")
    main([*arguments, str(tmp_path / "other"), "--quiet"])
    assert capsys.readouterr().err == ""


def test_the_time_left_is_that_of_the_whole_run(monkeypatch) -> None:
    now = 1000.0
    monkeypatch.setattr("training.progress.time.monotonic", lambda: now)
    progress = TrainingProgress(epochs=10, done=2, quiet=True)  # 8 epochs remain
    now += 30
    assert progress.describe(loss=1.5, share=0.5) == "loss 1.500, 07:30 left"
    progress.end_epoch(1.5, {"seconds": 60})
    now += 30 + 30  # half of the next one
    assert progress.describe(loss=1.25, share=0.5) == "loss 1.250, 06:30 left"


def test_an_error_is_one_line(config_file, tmp_path, capsys) -> None:
    config = config_file()
    config.write_text(config.read_text().replace("epochs = 2", "epochs = 0"))
    with pytest.raises(SystemExit) as caught:
        main([str(config), "--output", str(tmp_path / "run")])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"centernet-train: error: {config}")
    assert "schedule.epochs" in error


def test_an_interrupted_run_names_resume(config_file, tmp_path, monkeypatch, capsys) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_step", interrupt)
    with pytest.raises(SystemExit) as caught:
        main([str(config_file()), "--output", str(tmp_path / "run")])
    assert caught.value.code == 130
    assert "--resume continues" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit):
        main([str(config_file()), "--output", str(tmp_path / "run"), "--resume"])
    assert "no epoch is complete" in capsys.readouterr().err


def test_the_bundled_config_is_valid(project: Path) -> None:
    config = read_config(project / "training/configs/blood_cells.toml")
    assert config.classes == ("RBC", "WBC", "Platelets")
