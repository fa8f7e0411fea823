"""Packages to build engines of, libraries that need no download, and kernels on the CPU."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.builds import FAKES, tiny_graph, write_package
from support.cuda_emulation import Emulation, compiler

from model_export.engines import building
from model_export.engines.compilation import Compilation, Cost, compile_engine
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
    """Have ``import tensorrt_rtx`` and ``import tensorrt`` find libraries that need no GPU."""
    real = {name: sys.modules.pop(name, None) for name in MODULES}
    monkeypatch.syspath_prepend(FAKES)
    yield
    for name, module in real.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Spare most tests the second that a process takes to start."""

    def run(compilation: Compilation, progress: Progress) -> Cost:
        compile_engine(compilation, progress)
        return Cost(seconds=0.1, peak_bytes=1)

    if "child" not in request.fixturenames:
        monkeypatch.setattr(building, "run_compilation", run)


@pytest.fixture
def child() -> None:
    """Build in a process of its own, as outside of tests."""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A package with one ONNX file."""
    return write_package(tmp_path / "tiny", {"model.onnx": tiny_graph()}).directory


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Emulation:
    """The kernels' source, compiled for this machine."""
    if compiler() is None:
        pytest.skip("no g++ to compile the kernels with")
    return Emulation(tmp_path_factory.mktemp("emulation"))
