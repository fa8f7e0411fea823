"""Packages to build engines from, fake libraries to build with, and kernels on the CPU."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.builds import FAKES, tiny_graph, write_package
from support.cuda_emulation import Emulation, compiler

from model_export.engines import build
from model_export.engines.child_process import BuildCost
from model_export.engines.compile_engine import CompileJob, compile_engine
from model_export.engines.interruption import Interruption
from model_export.engines.progress import Progress
from model_package import ModelPackage

MODULES = ("tensorrt", "tensorrt_rtx")


@pytest.fixture
def package(tmp_path: Path) -> ModelPackage:
    """A package with all four kinds of ONNX files."""
    names = ("model.onnx", "model_flip.onnx", "model_fp16.onnx", "model_flip_fp16.onnx")
    return write_package(tmp_path / "tiny", {name: tiny_graph(name) for name in names})


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make ``import tensorrt_rtx`` and ``import tensorrt`` find the fake libraries."""
    real = {name: sys.modules.pop(name, None) for name in MODULES}
    monkeypatch.syspath_prepend(FAKES)
    yield
    for name, module in real.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Build in this process: starting another takes a second."""

    def compile_here(job: CompileJob, progress: Progress, _: Interruption) -> BuildCost:
        compile_engine(job, progress)
        return BuildCost(seconds=0.1, peak_bytes=1)

    if "child_process" not in request.fixturenames:
        monkeypatch.setattr(build, "compile_in_child_process", compile_here)


@pytest.fixture
def child_process() -> None:
    """Build in a child process, as outside of tests."""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A package with one ONNX file."""
    return write_package(tmp_path / "tiny", {"model.onnx": tiny_graph()}).directory


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Emulation:
    """The source of the kernels, compiled for the CPU."""
    if compiler() is None:
        pytest.skip("no g++ to compile the kernels with")
    return Emulation(tmp_path_factory.mktemp("emulation"))
