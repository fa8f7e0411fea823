"""ONNX Runtime's telemetry is off before the library is loaded."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.connections import clean_environment


@pytest.mark.parametrize("module", ["model_package", "service.detector", "model_export.pipeline"])
def test_telemetry_is_disabled_by_the_import(project: Path, tmp_path: Path, module: str) -> None:
    code = (
        f"import {module}, onnxruntime\n"
        "onnxruntime.InferenceSession('models/blood_cells/model.onnx',"
        " providers=['CPUExecutionProvider'])"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=project,
        env=clean_environment(tmp_path) | {"PYTHONPATH": str(project)},
        check=True,
        timeout=120,
    )
    assert not (tmp_path / ".cache" / "Microsoft").exists()


def test_images_disable_telemetry(project: Path) -> None:
    assert "ORT_DISABLE_TELEMETRY=1" in (project / "docker" / "Dockerfile").read_text()
