"""Compilation of one engine, and the progress that it reports."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.builds import FAKES, tiny_graph

from model_export.engines import compile_engine as compile_engine_module
from model_export.engines.compile_engine import CompileJob, compile_engine
from model_export.engines.errors import EngineCompileError
from model_export.engines.optimization_profile import OptimizationProfile
from model_export.engines.progress import PhaseProgress
from model_package.tensorrt_libraries import TENSORRT_LIBRARIES

SHAPE = (1, 8, 8, 3)


def job(backend: str, onnx_file: Path) -> CompileJob:
    return CompileJob(
        library=TENSORRT_LIBRARIES[backend],
        onnx_file=onnx_file,
        engine_file=onnx_file.with_suffix(".engine"),
        profile=OptimizationProfile(SHAPE, SHAPE, SHAPE),
        compute_capability="8.9",
        tf32=False,
        timing_cache=None,
    )


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("backend", "domain", "registered"),
    [
        ("tensorrt", "centernet", 1),
        ("tensorrt", "", 0),
        ("tensorrt-rtx", "centernet", 0),  # a Python plugin would abort the process
    ],
)
def test_registers_plugins_if_the_file_needs_them_and_the_library_takes_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    domain: str,
    registered: int,
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(
        compile_engine_module, "register_corner_pooling", lambda trt: calls.append(trt.__name__)
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_graph(operator="corner_pool_top", domain=domain))
    compile_engine(job(backend, path), lambda *_: None)
    assert calls == ["tensorrt"] * registered


@pytest.mark.usefixtures("fakes")
def test_a_library_that_does_not_start_is_reported_with_the_driver_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt

    def no_builder(logger: Any) -> None:
        logger.log(tensorrt.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        # What the bindings of TensorRT 10.16 and 11.4 raise.
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(tensorrt, "Builder", no_builder)
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_graph())
    with pytest.raises(EngineCompileError, match=r"error: 35.*NVIDIA driver 580 or newer"):
        compile_engine(job("tensorrt", path), lambda *_: None)


CALLS = """
import inspect, json, sys
from pathlib import Path
from support.tensorrt_on_cpu import load
real, _ = load(Path(sys.argv[1]))
sys.path.insert(0, sys.argv[2])
del sys.modules["tensorrt"]
import tensorrt, tensorrt_rtx
missing, checked = [], 0
for fake in (tensorrt, tensorrt_rtx):
    for name, entry in inspect.getmembers(fake, inspect.isclass):
        if entry.__module__ == fake.__name__ and name != "ComputeCapability":
            for call in vars(entry):
                checked += call[0] != "_"
                if call[0] != "_" and not hasattr(getattr(real, name, None), call):
                    missing.append(f"{name}.{call}")
print(json.dumps([real.__version__, checked, sorted(missing)]))
"""


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_every_name_of_the_fakes_exists_in_full_tensorrt(project: Path, version: str) -> None:
    """The builder calls nothing that the fakes lack, or its tests would fail."""
    folder = Path(sys.prefix, "tensorrt", version)
    if not (folder / "installed").exists():
        pytest.skip(f"no bindings of TensorRT {version}: run `make tensorrt-bindings`")
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to compile stubs of TensorRT's libraries")
    environment = os.environ | {"PYTHONPATH": f"{project}{os.pathsep}{project / 'tests'}"}
    command = [sys.executable, "-W", "ignore", "-c", CALLS, folder, FAKES]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    version_found, checked, missing = json.loads(result.stdout.splitlines()[-1])
    assert version_found == version
    assert checked > 20
    # The builder uses these only with TensorRT-RTX.
    rtx_only = ["num_compute_capabilities", "set_compute_capability"]
    assert missing == [f"IBuilderConfig.{call}" for call in rtx_only]


def test_progress_is_the_fraction_of_nested_steps() -> None:
    reports: list[tuple[float, str]] = []
    phases = PhaseProgress(lambda fraction, name: reports.append((round(fraction, 3), name)))
    phases.start("whole", None, 4)
    phases.complete("whole", 0)
    phases.start("part", "whole", 2)
    phases.complete("part", 0)
    phases.start("detail", "part", 2)
    phases.complete("detail", 0)
    phases.finish("detail")
    phases.complete("part", 1)
    phases.finish("part")
    phases.complete("whole", 1)  # no change
    phases.start("part", "whole", 1000)
    phases.complete("part", 0)  # less than the minimum increment
    phases.complete("unknown", 3)
    phases.finish("unknown")
    phases.complete("whole", 3)
    assert reports == [
        (0.25, "whole"),
        (0.375, "part"),
        (0.438, "detail"),
        (0.5, "part"),
        (1.0, "whole"),
    ]
