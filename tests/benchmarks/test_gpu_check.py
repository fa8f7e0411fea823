"""The GPU check on a machine without a GPU."""

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from enum import Enum
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check import engines, kernels, parity, report, sizes, speed
from benchmarks.gpu_check.cases import SMOKE_CASES
from benchmarks.gpu_check.notes import Notes
from model_package import FreeSize, ModelPackage, load_package
from model_package.gpu import Gpu
from service.engines import EngineOptions, EngineUnavailableError, Images
from service.engines.onnxruntime import CudaOptions, OnnxRuntimeEngine


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
    return only_fp32(load_package(project / "models" / "blood_cells"))


def only_fp32(package: ModelPackage) -> ModelPackage:
    """Remove the fp16 file, which ONNX Runtime does not run on a CPU."""
    artifacts = [file for file in package.manifest.artifacts if file.precision == "fp32"]
    manifest = package.manifest.model_copy(update={"artifacts": tuple(artifacts)})
    return replace(package, manifest=manifest)


def test_detects_a_backend_that_mixes_up_rows(
    bundled: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes()
    (correct,) = parity.check(bundled, ["onnxruntime-cpu"], 1, notes)
    assert correct["agrees"]
    assert notes.failed == []

    use_backends(monkeypatch, wrong=SlightlyWrongEngine)
    (wrong,) = parity.check(bundled, ["wrong"], 1, notes)
    assert not wrong["agrees"]
    assert notes.failed[0].startswith("blood_cells: wrong fp32: image ")


class BrokenEngine(OnnxRuntimeEngine):
    """Runs one batch; every further one fails."""

    ran = False

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        if self.ran:
            raise RuntimeError("an illegal memory access was encountered")
        self.ran = True
        return super().run(images, flip)


def use_backends(monkeypatch: pytest.MonkeyPatch, **engines_by_backend: type) -> None:
    """Open these engines for the backends of these names, and ONNX Runtime for others."""

    def open_engine(package: ModelPackage, backend: str, threads: int, **_: int) -> Any:
        kind = engines_by_backend.get(backend, OnnxRuntimeEngine)
        return kind(package, EngineOptions(threads))

    monkeypatch.setattr(engines, "open_engine", open_engine)


class MissingEngine:
    """A backend of which the machine has everything, but that does not open."""

    def __init__(self, *_: object) -> None:
        raise EngineUnavailableError("the engine cannot be loaded")


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (BrokenEngine, "RuntimeError: an illegal memory access was encountered"),
        (MissingEngine, "EngineUnavailableError: the engine cannot be loaded"),
    ],
)
def test_a_backend_that_raises_is_a_failure_and_the_others_are_still_compared(
    bundled: ModelPackage, monkeypatch: pytest.MonkeyPatch, engine: type, reason: str
) -> None:
    use_backends(monkeypatch, bad=engine)
    notes = Notes()
    rows = parity.check(bundled, ["bad", "onnxruntime-cpu"], 1, notes)
    assert notes.failed == [f"blood_cells: bad fp32: {reason}"]
    assert notes.not_run == []
    assert [(row["backend"], row["agrees"]) for row in rows] == [("onnxruntime-cpu", True)]


def test_an_exception_in_any_worker_is_a_failure_and_the_others_are_still_timed() -> None:
    """Also in a thread of its own, and also after the warm-up."""
    main_thread, calls = threading.get_ident(), Counter[str]()

    def in_another_thread(_: object) -> None:
        if threading.get_ident() != main_thread:
            raise RuntimeError("lost in a thread")

    def after_the_warm_up(_: object) -> None:
        calls["late"] += 1
        if calls["late"] > 1:
            raise RuntimeError("too late")

    contenders = [
        speed.Contender("threads", in_another_thread, workers=2),
        speed.Contender("late", after_the_warm_up),
        speed.Contender("good", lambda _: None),
    ]
    notes = Notes()
    repetitions = speed.Repetitions(batch_sizes=(2,), rounds=3, calls=1, warm_up=1)
    rows = speed._measure("net", contenders, np.zeros((2, 4, 4, 3), np.uint8), repetitions, notes)
    assert [row["contender"] for row in rows] == ["good"]
    assert sorted(notes.failed) == [
        "net: late at batch 2: RuntimeError: too late",
        "net: threads at batch 2: RuntimeError: lost in a thread",
    ]


def test_an_engine_that_does_not_open_is_a_failure_of_the_speed_check(
    bundled: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_backends(monkeypatch, bad=MissingEngine)
    notes = Notes()
    with ExitStack() as stack:
        assert list(speed._engine_contenders(bundled, "bad", 1, 8, stack, notes)) == []
    (failure,) = notes.failed
    assert failure.endswith(
        "speed of bad fp32: EngineUnavailableError: the engine cannot be loaded"
    )


def test_changing_sizes_are_timed_for_every_setting_of_onnxruntime(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []

    class RecordingEngine(OnnxRuntimeEngine):
        def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
            del flip
            shapes.append(np.shape(images))
            return {}

    def open_cuda_engine(package: ModelPackage, options: EngineOptions, _: CudaOptions) -> Any:
        return RecordingEngine(package, options)

    monkeypatch.setattr(engines, "open_cuda_engine", open_cuda_engine)
    use_backends(monkeypatch, **{"onnxruntime-cuda": RecordingEngine})
    people = only_fp32(load_package(project / "models" / "people"))
    free = FreeSize(multiple_px=32, extra_px=1, max_side_px=320)
    manifest = people.manifest
    manifest = manifest.model_copy(
        update={"input": manifest.input.model_copy(update={"free_size": free})}
    )
    notes = Notes()
    rows = sizes.check(replace(people, manifest=manifest), 1, notes)
    assert notes.failed == []
    names = ["onnxruntime-cuda", *engines.CUDA_VARIANTS]
    assert [row["engine"] for row in rows] == [f"{name} fp32" for name in names]
    assert {*rows[0]} == {"package", "engine", "first_ms", "changed_ms", "repeated_ms"}
    run_sizes = shapes[: len(shapes) // len(names)]
    assert len(set(run_sizes)) == sizes.NUM_SIZES
    assert all(free.max_side_px >= max(shape[1:3]) and not shape[1] % 32 for shape in run_sizes)
    # Each size runs twice before the next.
    assert run_sizes[::2] == run_sizes[1::2]
    assert all(a != b for a, b in pairwise(run_sizes[::2]))


@pytest.mark.parametrize("failure", ["kernels", "package"])
def test_the_exit_status_reports_an_exception(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failure: str
) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("no image is available for execution on the device")

    no_kernels = {"device": None, "not_run": "no GPU", "parity": [], "speed": []}
    monkeypatch.setattr(kernels, "check", fail if failure == "kernels" else lambda: no_kernels)
    monkeypatch.setattr(command, "SMOKE_CASES", () if failure == "kernels" else SMOKE_CASES)
    monkeypatch.setattr(command, "make_package", fail)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--smoke", "--output", str(tmp_path)])
    assert command.main() == 1
    report_text = (tmp_path / "gpu_check.md").read_text()
    failed = report_text.partition("## Failed")[2].partition("## Not run")[0]
    assert "RuntimeError: no image is available for execution on the device" in failed


@pytest.mark.parametrize(
    ("modules", "providers", "not_run"),
    [
        ({"cuda", "onnxruntime"}, ["CUDAExecutionProvider"], {"tensorrt", "tensorrt-rtx"}),
        ({"cuda", "onnxruntime"}, [], {"tensorrt", "tensorrt-rtx", "onnxruntime-cuda"}),
        ({"cuda", "tensorrt"}, [], {"tensorrt-rtx", "onnxruntime-cuda"}),
        ({"onnxruntime", "tensorrt"}, [], {"tensorrt", "tensorrt-rtx", "onnxruntime-cuda"}),
    ],
)
def test_backends_without_their_packages_are_not_run(
    monkeypatch: pytest.MonkeyPatch, modules: set[str], providers: list[str], not_run: set[str]
) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: name in modules or None)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: providers)
    notes = Notes()
    available = engines.gpu_backends(notes)
    assert {line.partition(":")[0] for line in notes.not_run} == not_run
    assert set(available) == {"tensorrt", "tensorrt-rtx", "onnxruntime-cuda"} - not_run
    assert notes.failed == []


def test_tensorrt_rtx_is_not_run_on_a_gpu_that_it_does_not_build_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    targets = Enum("ComputeCapability", {"SM89": 89})
    library = SimpleNamespace(ComputeCapability=targets, __version__="1.7")
    monkeypatch.setattr(engines, "find_spec", lambda name: name != "tensorrt" or None)
    monkeypatch.setattr(engines, "import_library", lambda _: library)
    for capability, count in (("8.9", 1), ("9.0", 0)):
        gpu = Gpu("a GPU", capability)
        monkeypatch.setattr(engines, "find_gpu", lambda gpu=gpu: gpu)
        assert engines.gpu_backends(Notes()).count("tensorrt-rtx") == count


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
                row("onnxruntime-cuda (no graphs) fp16", 8, 0.5),
                row("tensorrt fp16, two at a time", 1, 1.0),
            ],
            "parity": [],
            "builds": [],
            "sizes": [{"engine": "onnxruntime-cuda fp16", "first_ms": 12.5}],
            "failed": [],
            "not_run": ["a | thing: because\nof this"],
        }
    )
    assert "GPU check: NVIDIA L4, 22.0 GiB, driver 580.1" in text
    assert "batch 8 and above | >= 0.8 | 0.91 |" in text
    assert "res_18-boxes, batch 8: best engine against PyTorch fp16 | >= 2.0x | 2.50x |" in text
    assert "dla_34-boxes, batch 8: best engine against PyTorch fp16 | >= 2.0x | not m" in text
    assert "batch 1: milliseconds | < 2.0 | 1.500 |" in text
    assert "| onnxruntime-cuda fp16 | 12.5 |" in text
    assert "2 of 2 cases equal PyTorch bit for bit." in text
    assert "- a | thing: because of this" in text
