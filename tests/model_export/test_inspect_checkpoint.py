"""Command line of ``centernet-export inspect``."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.checkpoints import State

from model_export.cli import main


def _inspect(state: State, directory: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    path = directory / "unknown.pth"
    torch.save({"epoch": 1, "state_dict": state}, path)
    code = main(["inspect", str(path)])
    return code, capsys.readouterr().out


def test_describes_a_pose_network(
    upstream_state: Callable[[str], State], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output = _inspect(upstream_state("multi_pose_dla_34"), tmp_path, capsys)
    assert code == 0
    for line in (
        "unknown.pth: dla_34 for poses, 3",
        "detects: 1 class, 17 keypoints",
        "heads: heatmap 1, size 2, offset 2, keypoint_offsets 34, keypoint_heatmap 17, "
        "keypoint_heatmap_offset 2; 256 hidden channels",
        "default input: 512x512, sides multiples of 32, normalization coco",
        "not needed: 12 tensors",
        "no missing and no unexpected tensors",
    ):
        assert line in output


def test_lists_missing_and_unexpected_tensors(
    slim_state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {key: value for key, value in slim_state.items() if not key.startswith("wh.")}
    code, output = _inspect(state | {"extra": torch.ones(1)}, tmp_path, capsys)
    assert code == 2
    assert "closest to res_18_slim for boxes" in output
    assert "4 missing (wh.0.weight, wh.0.bias, wh.2.weight, ...)" in output
    assert "1 unexpected (extra)" in output


def test_an_unreadable_checkpoint_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "notes.pth"
    path.write_text("words")
    assert main(["inspect", str(path)]) == 2
    assert "is not a PyTorch checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("segments\n", r"there is no task 'segments\\n'. Accepted: boxes, poses"),
        ("corner_pairs", "res_18_slim does not support the task corner_pairs"),
    ],
)
def test_a_checkpoint_of_an_unknown_task_is_an_error(
    slim_state: State,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    task: str,
    message: str,
) -> None:
    record = {
        "architecture": "res_18_slim",
        "task": task,
        "normalization": "coco",
        "classes": ["a", "b", "c"],
        "input_width": 96,
        "input_height": 96,
    }
    path = tmp_path / "trained.pth"
    torch.save({"state_dict": slim_state, "config": json.dumps(record)}, path)
    assert main(["inspect", str(path)]) == 2
    assert re.search(message, capsys.readouterr().err)
