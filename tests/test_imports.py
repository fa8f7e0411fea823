"""Modules that importing each package loads, in a new interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest


def modules_after(interpreter: Path, statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules, sep='\\n')"
    result = subprocess.run(
        [interpreter, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return {name.partition(".")[0] for name in result.stdout.split()}


def test_serving_loads_no_torch_no_onnx_and_no_exporter() -> None:
    loaded = modules_after(Path(sys.executable), "import service.cli, service.app")
    assert "service" in loaded
    assert not loaded & {"torch", "onnx", "onnxscript", "model_export", "training"}


def test_serving_without_traces_loads_no_trace_exporter() -> None:
    code = "import sys, service.cli; print(*sys.modules)"  # FastAPI itself loads the bare API
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(result.stdout.split())
    assert "service.observability.tracing" in loaded
    assert not loaded & {
        "service.observability.spans",
        "opentelemetry.sdk",
        "opentelemetry.exporter",
    }


def test_evaluation_loads_no_torch_no_onnx_and_no_exporter() -> None:
    loaded = modules_after(Path(sys.executable), "import evaluation.cli")
    assert {"evaluation", "service"} <= loaded
    assert not loaded & {"torch", "onnx", "onnxscript", "model_export", "training"}


def test_export_loads_no_service() -> None:
    loaded = modules_after(Path(sys.executable), "import model_export.cli")
    assert "model_export" in loaded
    assert not loaded & {"service", "fastapi", "uvicorn", "training"}


def test_the_client_loads_none_of_the_other_packages() -> None:
    loaded = modules_after(Path(sys.executable), "import client.command.cli")
    assert not loaded & {"service", "model_package", "model_export", "evaluation", "numpy", "cv2"}


def test_model_package_loads_pydantic_only() -> None:
    loaded = modules_after(Path(sys.executable), "import model_package")
    assert not loaded & {"numpy", "torch", "onnx", "onnxruntime", "fastapi", "PIL", "cv2"}


@pytest.mark.parametrize("package", ["torch", "onnx", "onnxscript", "pycocotools"])
def test_the_serving_environment_does_not_contain(package: str, project: Path) -> None:
    interpreter = project / ".venv" / "bin" / "python"
    if not interpreter.exists():
        pytest.skip("no serving environment: `make serve` or `make test` creates it")
    result = subprocess.run(
        [interpreter, "-c", f"import {package}"], capture_output=True, text=True, timeout=60
    )
    assert "ModuleNotFoundError" in result.stderr
