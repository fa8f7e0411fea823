"""One training step lowers the loss of every task, and its checkpoint can be exported."""

from pathlib import Path

import pytest
import torch
from support.configs import write_config

from model_export.checkpoints.identify import identify
from model_export.checkpoints.load_weights import load_network
from model_export.checkpoints.safe_load import read_state
from training.deep_supervision import StackedNetwork, predict_all
from training.trainer import Trainer

ARCHITECTURES_AND_TASKS = [
    ("res_18_slim", "boxes"),
    ("res_18_slim", "poses"),
    ("res_18_slim", "boxes_3d"),
    ("resdcn_18", "boxes"),
    ("dla_34", "poses"),
    ("hourglass_slim", "poses"),
    ("hourglass_tiny", "extreme_points"),
    ("res_18_slim", "extreme_points_agnostic"),
    ("cornernet_slim", "corner_pairs"),
    ("cornernet_squeeze", "corner_pairs"),
    ("triplet_slim", "corner_triplets"),
]


@pytest.mark.parametrize(("architecture", "task"), ARCHITECTURES_AND_TASKS)
def test_one_step_lowers_the_loss(tmp_path: Path, architecture: str, task: str) -> None:
    trainer = Trainer(write_config(tmp_path, architecture, task), tmp_path / "run")
    batch = next(iter(trainer._loader()))
    trainer.network.train()

    def loss() -> float:
        with torch.no_grad():
            return float(trainer._objective.total(trainer._terms(trainer.network, batch)))

    before = loss()
    terms = trainer._step(batch)
    assert terms.keys() == trainer._objective.weights.keys()
    assert loss() < before


@pytest.mark.parametrize(("architecture", "task"), ARCHITECTURES_AND_TASKS)
def test_the_best_checkpoint_is_recognised(tmp_path: Path, architecture: str, task: str) -> None:
    config = write_config(tmp_path, architecture, task)
    Trainer(config, tmp_path / "run").run()
    state = read_state(tmp_path / "run/best.pth")
    contents = identify(state)
    assert contents.architecture == architecture
    assert contents.task == task
    assert contents.num_classes == len(config.classes)
    assert contents.num_keypoints == len(config.keypoints)
    assert dict(contents.head_channels) == config.head_channels()
    network = load_network(contents, state)
    trainer = Trainer(config, tmp_path / "run", resume=True)
    side = (config.input_height, config.input_width)
    images = torch.rand(1, 3, *side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exported, trained = network(images), trainer.average.module(images)
    for name, maps in exported.items():
        # After one step, the statistics of batch normalization are far from those of its inputs:
        # maps of deep networks reach hundreds, and rounding errors grow with them.
        largest = max(1.0, float(trained[name].abs().max()))
        torch.testing.assert_close(maps, trained[name], rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize(
    ("architecture", "task", "early"),
    [
        ("hourglass_slim", "boxes", "hm.0.1.weight"),
        ("cornernet_slim", "corner_pairs", "tl_cnvs.0.p1_conv1.conv.weight"),
        ("triplet_slim", "corner_triplets", "ct_heats.0.0.conv.weight"),
    ],
)
def test_the_checkpoint_holds_the_heads_of_every_stack(
    tmp_path: Path, architecture: str, task: str, early: str
) -> None:
    config = write_config(tmp_path, architecture, task)
    trainer = Trainer(config, tmp_path / "run")
    assert isinstance(trainer.network, StackedNetwork)
    trainer.network.eval()
    images = torch.zeros(1, 3, config.input_height, config.input_width)
    with torch.inference_mode():
        first, last = predict_all(trainer.network, images)
        exported = trainer.network(images)
    assert first.keys() == last.keys() == config.head_channels().keys()
    for name, maps in exported.items():
        torch.testing.assert_close(maps, last[name], rtol=0, atol=0)
    trainer.run()
    state = read_state(tmp_path / "run/best.pth")
    assert early in state
    assert early in identify(state).unused


def test_a_stacked_network_resumes_where_it_stopped(tmp_path: Path) -> None:
    config = write_config(tmp_path, "cornernet_slim", "corner_pairs")
    trainer = Trainer(config, tmp_path / "run")
    trainer.run()
    resumed = Trainer(config, tmp_path / "run", resume=True)
    for key, value in trainer.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[key], value, rtol=0, atol=0)


def test_without_ap_the_best_checkpoint_has_the_lowest_loss(tmp_path: Path) -> None:
    config = write_config(tmp_path, "res_18_slim", "poses", schedule={"epochs": 2})
    data = config.data.model_copy(update={"validation": config.data.train[0]})
    trainer = Trainer(config.model_copy(update={"data": data}), tmp_path / "run")
    losses = iter([1.0, 2.0])
    trainer._validation_loss = lambda: {"validation_loss": next(losses)}
    trainer.run()
    assert torch.load(tmp_path / "run/best.pth", weights_only=True)["epoch"] == 1


def test_the_validation_loss_is_that_of_the_averaged_weights(tmp_path: Path) -> None:
    config = write_config(tmp_path, "res_18_slim", "boxes_3d")
    data = config.data.model_copy(update={"validation": config.data.train[0]})
    trainer = Trainer(config.model_copy(update={"data": data}), tmp_path / "run")
    first = trainer._validation_loss()["validation_loss"]
    batch = next(iter(trainer._loader()))  # the same two images, not augmented
    with torch.no_grad():
        terms = trainer._terms(trainer.average.module, batch)
    assert first == pytest.approx(float(trainer._objective.total(terms)), rel=1e-4)
