"""Heads of forks that are not supported are named, and left out on request."""

from pathlib import Path

import pytest
import torch
from support.checkpoints import State, without_counters
from torch import Tensor

from model_export.architectures import ARCHITECTURES, box_head_channels
from model_export.checkpoints.identify import identify
from model_export.checkpoints.load_weights import load_network
from model_export.cli import main
from model_export.cli_options import make_parser
from model_export.errors import CheckpointMismatchError

NECK_CHANNELS = 64


def _head(name: str, channels: int, in_channels: int = NECK_CHANNELS) -> State:
    return {
        f"{name}.0.weight": torch.zeros(32, in_channels, 3, 3),
        f"{name}.0.bias": torch.zeros(32),
        f"{name}.2.weight": torch.zeros(channels, 32, 1, 1),
        f"{name}.2.bias": torch.zeros(channels),
    }


def _masks(name: str) -> State:
    """Return a head of more layers, with batch normalization."""
    return {
        f"{name}.0.weight": torch.zeros(8, NECK_CHANNELS, 3, 3),
        f"{name}.1.weight": torch.zeros(8),
        f"{name}.1.running_mean": torch.zeros(8),
        f"{name}.3.weight": torch.zeros(8, 8, 1, 1),
    }


@pytest.fixture
def state(slim_state: State) -> State:
    return without_counters(slim_state)


@pytest.mark.parametrize(
    ("further", "described"),
    [
        (_head("tracking", 2), "tracking (displacements since the previous image)"),
        (_head("ltrb", 4) | _head("ltrb_amodal", 4), "ltrb (distances to the sides of boxes), l"),
        (_head("nuscenes_att", 8) | _head("velocity", 3), "of nuScenes), velocity (velocities)"),
        (_masks("seg_feat") | _head("conv_weight", 169), "seg_feat (features for masks), conv_w"),
        ({"color.weight": torch.zeros(3, NECK_CHANNELS, 1, 1)}, "color"),
    ],
)  # fmt: skip
def test_further_heads_are_named_and_left_out_on_request(
    state: State, further: State, described: str
) -> None:
    names = list(dict.fromkeys(key.partition(".")[0] for key in further))
    with pytest.raises(CheckpointMismatchError) as caught:
        identify(state | further)
    assert "is a res_18_slim for boxes with further heads" in str(caught.value)
    assert described in str(caught.value)
    assert f"--ignore-heads {' '.join(names)}." in str(caught.value)
    info = identify(state | further, ignored_heads=names)
    assert (info.architecture, info.unused) == ("res_18_slim", tuple(further))
    network = load_network(info, state | further)
    expected = load_network(identify(state), state).state_dict()
    assert all(torch.equal(weight, expected[key]) for key, weight in network.state_dict().items())
    if len(names) > 1:
        with pytest.raises(CheckpointMismatchError, match=f"--ignore-heads {names[1]}"):
            identify(state | further, ignored_heads=names[:1])


def test_further_heads_of_an_hourglass_are_found_in_every_stack() -> None:
    architecture = ARCHITECTURES["hourglass_slim"]
    with torch.device("meta"):
        network = architecture.build(box_head_channels(3))
    key = architecture.key_mapping.to_checkpoint_key
    state = without_counters({key(name): value for name, value in network.state_dict().items()})
    width = architecture.head_hidden_channels
    for stack in range(2):
        state[f"tracking.{stack}.0.conv.weight"] = torch.zeros(width, width, 3, 3)
        state[f"tracking.{stack}.1.weight"] = torch.zeros(2, width, 1, 1)
    assert identify(state, ignored_heads=["tracking"]).architecture == "hourglass_slim"


@pytest.mark.parametrize(
    ("further", "ignored", "message"),
    [
        (_head("tracking", 2), ["trackin"], "no head 'trackin' .* of the network: tracking"),
        ({}, ["reg"], "no head 'reg' that could be ignored; .* network: none"),
        (_head("tracking", 2), ["deconv_layers"], "no head 'deconv_layers'"),
        (_head("tracking", 2, in_channels=3), ["tracking"], "no head 'tracking'"),
        ({"scale": torch.zeros(3)}, ["scale"], "no head 'scale'"),
        (_head("amodel_offset", 2), ["amodel_offset"], "amodel_offset cannot be ignored: .* wrong"),
        (_head("amodel_offset", 2), [], "Not all of them can be left out"),
        (_head("velocity", 2) | {"extra.bias": torch.zeros(1)}, [], "unexpected"),
        ({"base.pre_img_layer.0.weight": torch.zeros(1)}, [], "is a tracker of CenterTrack"),
    ],
)
def test_what_cannot_be_left_out_is_refused(
    state: State, further: State, ignored: list[str], message: str
) -> None:
    with pytest.raises(CheckpointMismatchError, match=message):
        identify(state | further, ignored_heads=ignored)


def test_inspect_prints_a_command_that_leaves_them_out(
    state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.pth"
    torch.save(state | _head("tracking", 2) | _head("velocity", 3), path)
    assert main(["inspect", str(path)]) == 0
    output = capsys.readouterr().out
    assert "further heads, not supported: tracking (displacements since the previous im" in output
    command = f"centernet-export package --checkpoint {path} --ignore-heads tracking velocity "
    assert f"command: {command}--output models/res_18_slim" in output
    arguments = output.partition("command: centernet-export ")[2].partition("\n")[0].split()
    assert make_parser().parse_args(arguments).ignore_heads == ["tracking", "velocity"]


def test_inspect_prints_no_command_for_heads_that_are_needed(
    state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.pth"
    torch.save(state | _head("amodel_offset", 2), path)
    assert main(["inspect", str(path)]) == 2
    assert "command:" not in capsys.readouterr().out
