"""What cannot be built is told, with what can, and the package stays as it was."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.builds import ADA, FULL, build, contents, tiny_graph, write_package

from model_export.engines import building, libraries
from model_export.engines.building import EngineRequest
from model_export.engines.errors import (
    EngineBuildError,
    EngineLibraryError,
    EngineRequestError,
)

pytestmark = pytest.mark.usefixtures("fakes", "in_process")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (replace(ADA, compute_capability="9.0"), "does not build .* 9.0. Accepted: 8.9, 12.0"),
        (replace(ADA, compute_capability="sm89"), "'sm89' is not one. Give it like 8.9"),
        (replace(ADA, optimal_batch_size=9), "smallest 1, best 9, largest 8"),
        (replace(ADA, max_batch_size=0, optimal_batch_size=0), "greater than or equal to 1"),
        (replace(ADA, max_batch_size=1025), "less than or equal to 1024"),
        (replace(ADA, timing_cache=Path("x")), "Leave out --timing-cache"),
        (replace(ADA, backend="openvino"), "no backend 'openvino'.* tensorrt, tensorrt-rtx"),
        (replace(ADA, backend=None), "both installed. Choose one with --backend"),
        (replace(FULL, compute_capability="8.9"), "Leave out --compute-capability"),
        (replace(ADA, precision="fp16"), "no ONNX file in fp16.*package .*--precision fp16"),
    ],
)
def test_what_cannot_be_built_is_refused(
    small: Path, request_: EngineRequest, message: str
) -> None:
    before = contents(small)
    with pytest.raises(EngineRequestError, match=f"(?s){message}") as caught:
        build(small, request_)
    assert caught.value.code == "engine_request_invalid"
    assert contents(small) == before


@pytest.mark.parametrize(
    ("backend", "message"),
    [("tensorrt", "Build on the machine that"), ("tensorrt-rtx", "--compute-capability 8.9")],
)
def test_without_a_gpu_somebody_must_say_which(
    small: Path, monkeypatch: pytest.MonkeyPatch, backend: str, message: str
) -> None:
    monkeypatch.setattr(building, "find_gpu", lambda: None)
    with pytest.raises(EngineLibraryError, match=f"there is no GPU here .*{message}"):
        build(small, EngineRequest(backend=backend))


def test_libraries_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda _: None)
    with pytest.raises(EngineLibraryError, match=r"\[build,tensorrt\].*pypi.nvidia.com.*-rtx\]"):
        libraries.choose_library(None)
    monkeypatch.setattr(libraries, "find_spec", lambda name: name == "tensorrt" or None)
    assert libraries.choose_library(None).backend == "tensorrt"


def test_a_library_that_cannot_be_used_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorrt

    library = libraries.LIBRARIES["tensorrt"]
    monkeypatch.setattr(tensorrt, "__version__", "10.8.0.43")
    with pytest.raises(EngineLibraryError, match=r"10\.8\.0\.43, but at least 10\.9 .*nvidia\.com"):
        libraries.import_library(library)
    monkeypatch.delattr(tensorrt, "__version__")  # what is left of a broken installation
    with pytest.raises(EngineLibraryError, match="is not TensorRT: it has no version"):
        libraries.import_library(library)

    def broken(_: str) -> None:
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(libraries, "import_module", broken)
    with pytest.raises(EngineLibraryError, match=r"\(libnvinfer.so.11.*pypi\.nvidia\.com"):
        libraries.import_library(library)


@pytest.mark.usefixtures("child")
@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (
            {"operator": "NonMaxSuppression"},
            r"does not accept model.onnx: node '/first' \(NonMaxSuppression\): not supported",
        ),
        ({"producer": "refuse"}, "could not build .* model.onnx: no kernel for node /head/Conv"),
        ({"producer": "abort"}, r"ended without an engine \(SIGABRT\)"),
    ],
)
def test_what_the_library_refuses_leaves_the_package(
    tmp_path: Path, graph: dict[str, str], message: str
) -> None:
    directory = tmp_path / "bad"
    write_package(directory, {"model.onnx": tiny_graph(**graph)})
    before = contents(directory)
    with pytest.raises(EngineBuildError, match=message) as caught:
        build(directory, ADA)
    assert "of no interest" not in str(caught.value)
    assert contents(directory) == before
