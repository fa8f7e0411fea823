"""Rejected and failed builds: the message says what is accepted, and the package is unchanged."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.builds import ADA, FULL, build, contents, tiny_graph, write_package

from model_export.engines import build as build_module
from model_export.engines import libraries
from model_export.engines.build import EngineRequest
from model_export.engines.errors import (
    EngineCompileError,
    EngineLibraryError,
    EngineRequestError,
)
from model_package import tensorrt_libraries

pytestmark = pytest.mark.usefixtures("fakes", "in_process")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (replace(ADA, compute_capability="9.0"), "does not build .* 9.0. Accepted: 8.9, 12.0"),
        (
            replace(ADA, compute_capability="sm89"),
            "'sm89' is not a compute capability. Give it like 8.9",
        ),
        (replace(ADA, optimal_batch_size=9), "min 1, opt 9, max 8"),
        (replace(ADA, max_batch_size=0, optimal_batch_size=0), "greater than or equal to 1"),
        (replace(ADA, max_batch_size=1025), "less than or equal to 1024"),
        (replace(ADA, timing_cache=Path("x")), "Leave out --timing-cache"),
        (replace(ADA, backend="openvino"), "no backend 'openvino'.* tensorrt, tensorrt-rtx"),
        (replace(ADA, backend=None), "both installed. Choose one with --backend"),
        (replace(FULL, compute_capability="8.9"), "Leave out --compute-capability"),
        (replace(ADA, precision="fp16"), "no ONNX file in fp16.*package .*--precision fp16"),
    ],
)
def test_rejects_requests_that_cannot_be_built(
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
def test_asks_for_the_target_if_there_is_no_gpu(
    small: Path, monkeypatch: pytest.MonkeyPatch, backend: str, message: str
) -> None:
    monkeypatch.setattr(build_module, "find_gpu", lambda: None)
    with pytest.raises(EngineLibraryError, match=f"there is no GPU here .*{message}"):
        build(small, EngineRequest(backend=backend))


def test_reports_missing_libraries_with_the_install_commands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda _: None)
    with pytest.raises(EngineLibraryError, match=r"\[build,tensorrt\].*pypi.nvidia.com.*-rtx\]"):
        libraries.select_library(None)
    monkeypatch.setattr(libraries, "find_spec", lambda name: name == "tensorrt" or None)
    assert libraries.select_library(None).backend == "tensorrt"


def test_reports_a_library_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorrt

    library = tensorrt_libraries.TENSORRT
    monkeypatch.setattr(tensorrt, "__version__", "10.8.0.43")
    with pytest.raises(
        EngineLibraryError, match=r"10\.8\.0\.43 is installed, but at least 10\.9 .*nvidia\.com"
    ):
        libraries.import_library(library)
    monkeypatch.delattr(tensorrt, "__version__")  # what an incomplete uninstallation leaves
    with pytest.raises(EngineLibraryError, match="is not TensorRT: it has no version"):
        libraries.import_library(library)

    def broken(_: str) -> None:
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(tensorrt_libraries, "import_module", broken)
    with pytest.raises(EngineLibraryError, match=r"\(libnvinfer.so.11.*pypi\.nvidia\.com"):
        libraries.import_library(library)


@pytest.mark.usefixtures("child_process")
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
def test_a_failed_build_leaves_the_package_unchanged(
    tmp_path: Path, graph: dict[str, str], message: str
) -> None:
    directory = tmp_path / "bad"
    write_package(directory, {"model.onnx": tiny_graph(**graph)})
    before = contents(directory)
    with pytest.raises(EngineCompileError, match=message) as caught:
        build(directory, ADA)
    assert "of no interest" not in str(caught.value)
    assert contents(directory) == before
