"""Identification and description of MMDetection's checkpoints."""

import json
from pathlib import Path

import pytest
import torch
from support.stored_checkpoints import restore_checkpoint
from torch import Tensor

from model_export.checkpoints.identify import identify
from model_export.cli import main
from model_export.errors import CheckpointMismatchError

DIRECTORY = Path(__file__).parent
UPDATE_HEAD = ("conv_cls.weight", "conv_reg.weight", "scales.0.scale")


def shapes_of(network: str) -> dict[str, Tensor]:
    """Return the state dict of a network, without values."""
    shapes = json.loads((DIRECTORY / "manifests" / f"{network}.json").read_text())
    return {
        key: torch.empty(shape, device="meta")
        for key, shape in shapes.items()
        if not key.endswith("num_batches_tracked")
    }


@pytest.mark.parametrize(
    ("network", "architecture", "task"),
    [
        ("centernet_r18", "mmdet_centernet_r18", "boxes"),
        ("centernet_r18_dcnv2", "mmdet_centernet_r18_dcnv2", "boxes"),
        ("cornernet_hourglass104", "mmdet_cornernet_hourglass104", "corner_pairs"),
    ],
)
def test_every_tensor_of_mmdetection_is_mapped(network: str, architecture: str, task: str) -> None:
    found = identify(shapes_of(network))
    assert (found.architecture, found.task, found.num_classes) == (architecture, task, 80)
    # Heads of the first stack, which only the loss of the training uses.
    assert all(".0." in key for key in found.unused)
    assert bool(found.unused) == (task == "corner_pairs")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (UPDATE_HEAD, "is MMDetection's centernet-update"),
        ((*UPDATE_HEAD, "conv_centerness.weight"), "is of another detector of MMDetection"),
        (("tl_centripetal_shift.0.conv.weight",), "is of another detector of MMDetection"),
    ],
)
def test_other_detectors_are_refused_by_name(keys: tuple[str, ...], message: str) -> None:
    state = {f"bbox_head.{key}": torch.zeros(1) for key in keys}
    with pytest.raises(CheckpointMismatchError, match=message):
        identify(state)


def test_a_file_of_mmengine_is_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "epoch_1.pth"
    restore_checkpoint(DIRECTORY / "checkpoints/centernet_r18_dcnv2.pth.xz", {}, path)
    assert main(["inspect", str(path)]) == 0
    output = capsys.readouterr().out
    for line in (
        "epoch_1.pth: mmdet_centernet_r18_dcnv2 for boxes, 148 tensors",
        "framework: MMDetection (CenterNet, CenterNetHead; MMEngine 0.10.7)",
        "detects: 80 classes: person, bicycle, car, ",
        "heads: heatmap 80, size 2, offset 2; 64 hidden channels",
        "normalization mmdetection, keep_resolution",
        f"command: centernet-export package --checkpoint {path} --output models/mmdet_centernet",
    ):
        assert line in output
