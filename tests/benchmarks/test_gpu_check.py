"""The GPU check on a machine without a GPU."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.gpu_check import engines, parity, report
from benchmarks.gpu_check.notes import Notes
from model_package import ModelPackage, load_package
from service.engines import EngineOptions, Images
from service.engines.onnxruntime import OnnxRuntimeEngine


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_reports_what_it_did_not_run_without_a_gpu(project: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", "--smoke", "--output", tmp_path],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 3, run.stderr
    result = json.loads((tmp_path / "gpu_check.json").read_text())
    assert result["host"]["gpu"] is None
    assert result["failed"] == []
    (row,) = (row for row in result["parity"] if row["precision"] == "fp32")
    assert (row["backend"], row["agrees"], row["matched"]) == ("onnxruntime-cpu", True, 1.0)
    timed = {(row["contender"], row["batch_size"]) for row in result["speed"]}
    assert timed == {
        (name, size) for name in ("PyTorch fp32", "onnxruntime-cpu fp32") for size in (1, 2)
    }
    assert result["kernels"]["speed"] == []
    for check in ("everything on a GPU", "corner pooling kernels", "slim: PyTorch fp16"):
        assert any(line.startswith(check) for line in result["not_run"])
        assert f"- {check}" in (tmp_path / "gpu_check.md").read_text()
    assert "| not measured |" in (tmp_path / "gpu_check.md").read_text()


class SlightlyWrongEngine(OnnxRuntimeEngine):
    """Returns the scores of the first image for the last image of a batch."""

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        outputs = {name: np.array(values) for name, values in super().run(images, flip).items()}
        outputs["scores"][-1] = outputs["scores"][0]
        return outputs


@pytest.fixture
def bundled(project: Path) -> ModelPackage:
    return load_package(project / "models" / "blood_cells")


def test_detects_a_backend_that_mixes_up_rows(
    bundled: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes()
    (correct,) = parity.check(bundled, ["onnxruntime-cpu"], 1, notes)
    assert correct["agrees"]
    assert notes.failed == []

    def open_engine(package: ModelPackage, backend: str, threads: int, **_: int) -> Any:
        kind = SlightlyWrongEngine if backend == "wrong" else OnnxRuntimeEngine
        return kind(package, EngineOptions(threads))

    monkeypatch.setattr(engines, "open_engine", open_engine)
    (wrong,) = parity.check(bundled, ["wrong"], 1, notes)
    assert not wrong["agrees"]
    assert notes.failed[0].startswith("blood_cells: wrong fp32: image ")


def row(
    contender: str, batch_size: int, ms: float, network: str = "res_18-boxes"
) -> dict[str, Any]:
    return {
        "network": network,
        "contender": contender,
        "batch_size": batch_size,
        "ms_per_batch": ms,
        "images_per_s": 1e3 * batch_size / ms,
    }


def test_report_compares_measurements_with_targets() -> None:
    pooling = {"op_type": "CornerPoolTop", "format": "fp16", "warps": 4}
    gpu = {"name": "NVIDIA L4", "memory_gib": 22.0, "compute_capability": "8.9"}
    host = {"gpu": gpu, "driver": "580.1", "cores": 4, "processor": "x", "python": "3.12"}
    text = report.markdown(
        {
            "host": host | {"packages": {"torch": "2.13.0"}},
            "kernels": {
                "parity": [{"equal": True}, {"equal": True}],
                "speed": [
                    pooling | {"shape": [1, 2, 3, 4], "of_copy": 0.3},
                    pooling | {"shape": [8, 2, 3, 4], "of_copy": 0.5},
                    pooling | {"shape": [8, 2, 3, 4], "of_copy": 0.91, "warps": 8},
                    pooling | {"shape": [16, 2, 3, 4], "of_copy": 0.95},
                ],
            },
            "speed": [
                row("PyTorch fp16", 8, 10.0),
                row("torch.compile fp16", 8, 1.0),
                row("onnxruntime-cpu fp32", 8, 1.0),
                row("onnxruntime-cuda fp16", 8, 5.0),
                row("tensorrt fp16, two at a time", 8, 4.0),
                row("tensorrt fp16", 1, 1.5),
                row("tensorrt fp16, two at a time", 1, 1.0),
            ],
            "parity": [],
            "builds": [],
            "failed": [],
            "not_run": ["a | thing: because\nof this"],
        }
    )
    assert "GPU check: NVIDIA L4, 22.0 GiB, driver 580.1" in text
    assert "batch 8 and above | >= 0.8 | 0.91 |" in text
    assert "res_18-boxes, batch 8: best engine against PyTorch fp16 | >= 2.0x | 2.50x |" in text
    assert "dla_34-boxes, batch 8: best engine against PyTorch fp16 | >= 2.0x | not m" in text
    assert "batch 1: milliseconds | < 2.0 | 1.500 |" in text
    assert "2 of 2 cases equal PyTorch bit for bit." in text
    assert "- a | thing: because of this" in text
