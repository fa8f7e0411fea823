"""A checkpoint that Lightning wrote, with callbacks, optimizer and averaged weights."""

from pathlib import Path

import pytest
import torch
from support.checkpoints import State
from support.stored_checkpoints import restore_checkpoint

from model_export.checkpoints.safe_load import read_checkpoint
from model_export.cli import main
from model_package import load_package

STORED = Path(__file__).parent / "lightning/res_18_slim.ckpt.xz"


@pytest.fixture
def checkpoint(slim_state: State, tmp_path: Path) -> Path:
    path = tmp_path / "epoch=0-step=1.ckpt"
    restore_checkpoint(STORED, slim_state, path)
    return path


def test_a_file_of_lightning_is_described(
    checkpoint: Path, slim_state: State, capsys: pytest.CaptureFixture[str]
) -> None:
    read = read_checkpoint(checkpoint)
    assert all(torch.equal(weight, slim_state[name]) for name, weight in read.state.items())
    assert main(["inspect", str(checkpoint)]) == 0
    output = capsys.readouterr().out
    for line in (
        "res_18_slim for boxes, 127 tensors",
        # Lightning exchanges the two when it saves averages.
        "weights: state_dict; --weights also accepts current_model_state",
        "prefix of all names, removed: model.",
        "no missing and no unexpected tensors",
        f"command: centernet-export package --checkpoint {checkpoint} --output models/res_18",
    ):
        assert line in output


@pytest.mark.slow
def test_a_file_of_lightning_is_exported(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "package"
    options = ["--input-size", "64x64", "--classes", "circle,square,triangle", "--quiet"]
    command = ["package", "--checkpoint", str(checkpoint), "--output", str(output)]
    assert main([*command, *options]) == 0
    assert load_package(output).manifest.provenance.architecture == "res_18_slim"
