"""ONNX Runtime's telemetry is off before the library is loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("module", ["model_package", "service.detector", "model_export.pipeline"])
def test_telemetry_is_disabled_by_the_import(project: Path, tmp_path: Path, module: str) -> None:
    skipped = ("CI", "ORT_DISABLE_TELEMETRY")
    environ = {name: value for name, value in os.environ.items() if name not in skipped}
    code = (
        f"import {module}, onnxruntime\n"
        "onnxruntime.InferenceSession('models/blood_cells/model.onnx',"
        " providers=['CPUExecutionProvider'])"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=project,
        env=environ | {"HOME": str(tmp_path), "PYTHONPATH": str(project)},
        check=True,
        timeout=120,
    )
    assert not (tmp_path / ".cache" / "Microsoft").exists()


def test_images_disable_telemetry(project: Path) -> None:
    assert "ORT_DISABLE_TELEMETRY=1" in (project / "docker" / "Dockerfile").read_text()
