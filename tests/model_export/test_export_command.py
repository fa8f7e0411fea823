"""Command line of ``centernet-export package``."""

import re
import sys
from pathlib import Path

import pytest
import torch
from support.connections import outside_calls_of
from torch import Tensor

from model_export import cli
from model_export.architectures import ARCHITECTURES
from model_export.cli import main
from model_export.pipeline import STEPS
from model_export.tasks import TASKS
from model_export.verification.comparison import EXCEPTIONS
from model_package import ModelPackage, Verification, load_package


def _arguments(checkpoint: Path, output: Path, changes: dict[str, str] | None = None) -> list[str]:
    options = {
        "checkpoint": str(checkpoint),
        "arch": "res_18_slim",
        "classes": "circle,square,triangle",
        "output": str(output),
        "input-size": "160x96",
        "top-k": "50",
    } | (changes or {})
    return ["package", *(part for name, value in options.items() for part in (f"--{name}", value))]


def test_an_export_opens_no_connection(
    project: Path, slim_checkpoint: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "model_export"]
    command += _arguments(slim_checkpoint, tmp_path / "out")
    assert outside_calls_of(command, tmp_path, project) == []
    assert not (tmp_path / ".cache" / "Microsoft").exists()


@pytest.mark.parametrize(
    ("wrapped", "prefix", "counters", "zipped"),
    [
        (True, "", True, True),
        (True, "module.", True, False),
        (False, "module.", False, True),
        (False, "", False, False),
    ],
)
def test_every_checkpoint_format_gives_the_same_package(
    slim_state: dict[str, Tensor],
    slim_package: ModelPackage,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    wrapped: bool,
    prefix: str,
    counters: bool,
    zipped: bool,
) -> None:
    state = {
        prefix + key: weight
        for key, weight in slim_state.items()
        if counters or not key.endswith("num_batches_tracked")
    }
    content = {"epoch": 140, "state_dict": state, "optimizer": {}} if wrapped else state
    checkpoint, output = tmp_path / "slim.pth", tmp_path / "models" / "shapes"
    torch.save(content, checkpoint, _use_new_zipfile_serialization=zipped)

    assert main(_arguments(checkpoint, output)) == 0

    package = load_package(output)
    assert package.manifest.name == "shapes"
    assert package.manifest.version == "1"
    assert package.manifest.provenance.license == "unknown"
    assert package.manifest.artifacts == slim_package.manifest.artifacts  # digest included
    assert list(output.parent.iterdir()) == [output]
    captured = capsys.readouterr()
    assert re.findall(r"^(\[.*?\]) .* \.\.\. \d+\.\d s$", captured.err, re.M) == [
        f"[{number}/{STEPS}]" for number in range(1, STEPS + 1)
    ]
    assert "1.37 M parameters" in captured.err
    assert "3 classes" in captured.out
    verification = package.manifest.verification
    unmatched = sum(verification.exceptions.values())
    assert verification.detections
    assert verification.detections - unmatched == verification.matched
    assert f"{verification.matched} of {verification.detections} detections" in captured.out
    assert f"MODELS={output.parent} make serve" in captured.out


def test_the_summary_says_what_was_not_matched() -> None:
    verification = Verification(
        reference="PyTorch",
        inputs=5,
        tolerances={"scores": 1e-4},
        worst_errors={"scores": 2e-6},
        matched_fraction=0.75,
        detections=400,
        matched=300,
        exceptions=dict(zip(EXCEPTIONS, range(98, 0, -1), strict=False)),
        left_out=("model.onnx, image 0: it is noise",),
    )
    first, *lines = cli._summary(verification).splitlines()
    assert first == (
        "300 of 400 detections matched in 5 images, alone and in a batch; worst errors scores 2e-06"
    )
    assert lines[:2] == [
        "  accepted without a match: 98 whose score is nearly the lowest that top_k keeps: "
        "rounding decides which are kept",
        "  accepted without a match: 97 beside a cell of nearly the same score: rounding decides "
        "which is the peak",
    ]
    assert lines[len(EXCEPTIONS) :] == ["  left out: model.onnx, image 0: it is noise"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": "absent.pth"}, "absent.pth does not exist"),
        ({"arch": "res_50"}, "export it with --arch res_18_slim"),
        ({"classes": "coco"}, "detects 3 classes, but 80 names"),
        ({"classes": "absent.txt"}, "is not a file. Accepted: coco, pascal"),
        ({"input-size": "512"}, "'512' is not a size"),
        ({"input-size": "100x100"}, "multiples of 32"),
        ({"name": "../other"}, "name: String should match pattern"),
        ({"verify-images": "absent"}, "absent is not a directory"),
    ],
)
def test_an_error_is_one_line_and_leaves_no_files(
    slim_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    message: str,
) -> None:
    assert main(_arguments(slim_checkpoint, tmp_path / "out", changes)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("centernet-export: error: ")
    assert message in last
    assert {path.name for path in tmp_path.iterdir()} == {"slim.pth"}


@pytest.mark.parametrize(
    ("architecture", "size", "message"),
    [
        # The size is accepted, so that the next check fails.
        ("cornernet_slim", "127x255", "absent is not a directory"),
        ("cornernet_slim", "128x128", "must be one less than multiples of 128, for instance 127x"),
        ("hourglass_slim", "160x96", "must be multiples of 128, for instance 128x128"),
        ("res_18_slim", "160x96", "absent is not a directory"),
        ("res_18_slim", "127x127", "must be multiples of 32, for instance 128x128"),
    ],
)
def test_input_sizes_are_checked_against_the_checkpoint(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    architecture: str,
    size: str,
    message: str,
) -> None:
    spec = ARCHITECTURES[architecture]
    network = spec.build(TASKS[spec.tasks[0]].head_channels({"offset": 2}, 3, 0))
    state = {
        spec.key_mapping.to_checkpoint_key(key): value
        for key, value in network.state_dict().items()
    }
    torch.save(state, tmp_path / "weights.pth")
    changes = {"input-size": size, "verify-images": "absent"}
    arguments = _arguments(tmp_path / "weights.pth", tmp_path / "out", changes)
    arguments.remove("--arch")
    arguments.remove("res_18_slim")
    assert main(arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_an_interruption_is_reported(
    slim_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object, progress: object, **__: object) -> None:
        assert callable(progress)
        progress("Read a checkpoint")
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "export_package", interrupted)
    assert main(_arguments(slim_checkpoint, tmp_path / "out")) == 130
    start, end = capsys.readouterr().err.splitlines()
    assert start == f"[1/{STEPS}] Read a checkpoint ..."
    assert end == f"{start} interrupted"


def test_the_help_shows_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["package", "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for default in ("(512x512; 3D: ", "(coco; 3D: ", "(0.3)", "(100)", "(unknown)"):
        assert default in text
