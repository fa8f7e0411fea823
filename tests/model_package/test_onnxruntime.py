"""ONNX Runtime is refused if two of its distributions have overwritten each other."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from model_package.onnxruntime import OnnxRuntimeConflictError, load_onnxruntime

COMMANDS = {
    "service": ("--port", "0", "--models", "models/blood_cells"),
    "model_export": ("package", "--checkpoint", "none.pth", "--output", "none"),
    "evaluation": (
        *("--package", "models/blood_cells", "--output", "OUT"),
        *("--annotations", "docs/samples/blood_smears.json", "--images", "docs/samples"),
    ),
}


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """A directory for ``sys.path`` with the metadata of ``onnxruntime-gpu``, which is not there."""
    metadata = tmp_path / "site" / "onnxruntime_gpu-1.30.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.30.0\n")
    return tmp_path / "site"


def assert_explains(message: str) -> None:
    installed = (
        f"onnxruntime {version('onnxruntime')} and onnxruntime-gpu 1.30.0 are both installed"
    )
    assert installed in message
    assert "pip uninstall --yes onnxruntime onnxruntime-gpu" in message
    assert "pip install onnxruntime-gpu==1.30.0" in message


def test_two_distributions_are_refused(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_onnxruntime().__version__ == version("onnxruntime")
    monkeypatch.syspath_prepend(both)
    with pytest.raises(OnnxRuntimeConflictError) as caught:
        load_onnxruntime()
    assert_explains(str(caught.value))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_two_distributions(
    project: Path, both: Path, tmp_path: Path, command: str
) -> None:
    arguments = [str(tmp_path / "out") if part == "OUT" else part for part in COMMANDS[command]]
    done = subprocess.run(
        [sys.executable, "-m", command, *arguments],
        cwd=project,
        env=os.environ
        | {
            "PYTHONPATH": f"{project}{os.pathsep}{both}",
            "CENTERNET_BACKEND": "onnxruntime-cpu",  # other backends do not import it
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode in (1, 2)
    assert_explains(done.stderr)
    assert "Traceback" not in done.stderr
