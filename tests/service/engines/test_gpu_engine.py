"""Instances, padding, CUDA graphs and errors of the GPU engines, without a GPU.

The engines run on fakes of CUDA and TensorRT that work on host memory, and on ONNX Runtime's CPU
provider in place of its CUDA provider. Each test runs with a fake GPU that executes work at once
and with one that executes it as late as possible.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.engines import engine_artifact, half_precision_artifact, make_images, make_package
from support.fake_cuda import FakeCudaRuntime, cudaError_t
from support.fake_onnxruntime import FakeOnnxRuntime
from support.fake_tensorrt import FakeTensorrt

from model_package import FreeSize, InputSpec, ModelPackage
from service.engines import (
    Engine,
    EngineBrokenError,
    EngineOptions,
    EngineUnavailableError,
    open_engine,
)
from service.engines.onnxruntime import CudaOptions, open_cuda_engine

FREE = InputSpec(
    width_px=64, height_px=64, free_size=FreeSize(multiple_px=32, extra_px=1, max_side_px=256)
)
BACKENDS = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")


@pytest.fixture(params=[True, False], ids=["lazy", "eager"])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeCudaRuntime:
    fake = FakeCudaRuntime(lazy=request.param)
    fake.install(monkeypatch)
    return fake


@pytest.fixture
def tensorrt(cuda: FakeCudaRuntime, monkeypatch: pytest.MonkeyPatch) -> FakeTensorrt:
    fake = FakeTensorrt(cuda, "10.9.0.34")
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    return fake


@pytest.fixture
def tensorrt_rtx(cuda: FakeCudaRuntime, monkeypatch: pytest.MonkeyPatch) -> FakeTensorrt:
    fake = FakeTensorrt(cuda, "1.7.1.116", rtx=True)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
    return fake


@pytest.fixture
def onnxruntime(cuda: FakeCudaRuntime, monkeypatch: pytest.MonkeyPatch) -> FakeOnnxRuntime:
    fake = FakeOnnxRuntime(cuda)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    return fake


@pytest.fixture
def package(tmp_path: Path) -> ModelPackage:
    return full_package(tmp_path)


def full_package(directory: Path, input_spec: InputSpec | None = None) -> ModelPackage:
    """Write ONNX files and engines of both libraries, with and without flip."""
    sides = (32, 256) if input_spec is not None else (64, 64)
    return make_package(
        directory,
        [
            engine_artifact(
                f"{backend}{flip}.engine", backend=backend, version=version, flip=bool(flip)
            )
            for backend, version in (("tensorrt", "10.9.0.34"), ("tensorrt_rtx", "1.7.1.116"))
            for flip in (0, 1)
        ],
        flips=(False, True),
        input_spec=input_spec or InputSpec(width_px=64, height_px=64),
        height_px=sides,
        width_px=sides,
    )


@pytest.fixture(params=BACKENDS)
def open_backend(
    request: pytest.FixtureRequest,
    tensorrt: FakeTensorrt,
    tensorrt_rtx: FakeTensorrt,
    onnxruntime: FakeOnnxRuntime,
) -> Iterator[Callable[[ModelPackage], Engine]]:
    """Open packages with each of the backends, and close them after the test."""
    del tensorrt, tensorrt_rtx, onnxruntime
    opened: list[Engine] = []

    def open_package(package: ModelPackage) -> Engine:
        opened.append(open_engine(package, request.param, threads=1))
        return opened[-1]

    yield open_package
    for engine in opened:
        engine.close()


def scores(engine: Engine, *values: int, flip: bool = False) -> list[float]:
    return engine.run(make_images(*values), flip)["scores"][:, 0].tolist()


def test_every_batch_size_returns_its_own_rows(
    open_backend: Callable[[ModelPackage], Engine], package: ModelPackage
) -> None:
    engine = open_backend(package)
    assert engine.max_batch_size == 8
    for count in (1, 5, 8, 2, 3, 7, 1, 4, 6):
        values = [10 * count + index for index in range(count)]
        assert scores(engine, *values) == values
        assert scores(engine, *values, flip=True) == [-value for value in values]
    outputs = engine.run(make_images(3, 4, 5))
    assert {name: (values.shape, str(values.dtype)) for name, values in outputs.items()} == {
        "scores": ((3, 1), "float32"),
        "class_ids": ((3, 1), "int32"),
        "centers": ((3, 1, 2), "float32"),
        "sizes": ((3, 1, 2), "float32"),
    }


def test_accepts_a_sequence_of_images(
    open_backend: Callable[[ModelPackage], Engine], package: ModelPackage
) -> None:
    engine = open_backend(package)
    assert engine.run(list(make_images(7, 9)))["scores"].tolist() == [[7], [9]]


def test_results_are_not_overwritten_by_later_batches(
    open_backend: Callable[[ModelPackage], Engine], package: ModelPackage
) -> None:
    engine = open_backend(package)
    results = [engine.run(make_images(value, value + 1)) for value in range(0, 100, 10)]
    for value, outputs in zip(range(0, 100, 10), results, strict=True):
        assert outputs["scores"].tolist() == [[value], [value + 1]]


def test_concurrent_batches_return_their_own_rows(
    open_backend: Callable[[ModelPackage], Engine], package: ModelPackage
) -> None:
    engine = open_backend(package)
    wrong: list[object] = []

    def run(start: int) -> None:
        for value in range(start, start + 40):
            values = [value] * (value % 8 + 1)
            actual = scores(engine, *values)
            if actual != values:
                wrong.append((values, actual))

    threads = [threading.Thread(target=run, args=(start,)) for start in (0, 100, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_runs_other_image_sizes_besides_the_default(
    open_backend: Callable[[ModelPackage], Engine], tmp_path: Path
) -> None:
    engine = open_backend(full_package(tmp_path, FREE))
    for height_px, width_px, count in ((64, 64, 3), (96, 32, 3), (64, 64, 2), (256, 256, 1)):
        images = make_images(*range(count), height_px=height_px, width_px=width_px)
        assert engine.run(images)["scores"][:, 0].tolist() == list(range(count))


def test_rejects_a_batch_that_is_too_large(
    open_backend: Callable[[ModelPackage], Engine], package: ModelPackage
) -> None:
    engine = open_backend(package)
    with pytest.raises(ValueError, match="received a batch of 9 images; accepted are 1 to 8"):
        scores(engine, *range(9))
    with pytest.raises(ValueError, match="larger than the buffers"):
        engine.run(make_images(*range(8), height_px=96, width_px=96))
    with pytest.raises(TypeError):
        engine.run(make_images(1).astype(np.float32))  # type: ignore[arg-type]
    assert scores(engine, 4) == [4]


def test_remains_usable_after_an_error(
    open_backend: Callable[[ModelPackage], Engine], package: ModelPackage, cuda: FakeCudaRuntime
) -> None:
    engine = open_backend(package)
    for name in ("cudaMemcpyAsync", "cudaEventRecord", "cudaEventSynchronize"):
        cuda.fail_next(name, cudaError_t.cudaErrorInvalidValue)
        with pytest.raises(Exception, match=f"{name}: CUDA error 1: cudaErrorInvalidValue"):
            scores(engine, 1, 2)
        assert [scores(engine, value) for value in (3, 4, 5)] == [[3], [4], [5]]


def test_close_frees_everything(
    open_backend: Callable[[ModelPackage], Engine], package: ModelPackage, cuda: FakeCudaRuntime
) -> None:
    engine = open_backend(package)
    scores(engine, 1)
    assert cuda.alive > 0
    engine.close()
    assert cuda.alive == 0
    open_backend(package)  # for the fixture to close


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        *((backend, "cudaMalloc") for backend in BACKENDS),
        *((backend, "cudaHostAlloc") for backend in BACKENDS),
        *((backend, "cudaStreamCreateWithFlags") for backend in BACKENDS),
    ],
)
@pytest.mark.usefixtures("tensorrt", "tensorrt_rtx", "onnxruntime")
def test_a_failed_load_frees_everything(
    package: ModelPackage, cuda: FakeCudaRuntime, name: str, backend: str
) -> None:
    cuda.fail_next(name, cudaError_t.cudaErrorMemoryAllocation)
    with pytest.raises(EngineUnavailableError, match="cudaErrorMemoryAllocation"):
        open_engine(package, backend, threads=1)
    assert cuda.alive == 0


def test_launches_are_captured_once_per_batch_size(
    tensorrt: FakeTensorrt, package: ModelPackage, cuda: FakeCudaRuntime
) -> None:
    engine = open_engine(package, "tensorrt", threads=1)
    # Two slots, two variants, and the sizes 1, 2, 4 and 8.
    assert cuda.calls["cudaGraphInstantiate"] == 2 * 2 * 4
    enqueued = [len(context.enqueued) for context in tensorrt.contexts]
    for count in range(1, 9):
        scores(engine, *range(count))
    assert cuda.calls["cudaGraphLaunch"] == 8
    assert [len(context.enqueued) for context in tensorrt.contexts] == enqueued
    # Images, outputs and activations of two instances, at the start.
    assert cuda.calls["cudaMalloc"] == 6
    engine.close()


def test_every_captured_graph_has_an_execution_context_of_its_own(
    tensorrt: FakeTensorrt, tmp_path: Path
) -> None:
    engine = open_engine(full_package(tmp_path, FREE), "tensorrt", threads=1)
    capturing = [context for context in tensorrt.contexts if context.captured]
    assert len(capturing) == 2 * 2 * 4
    assert all(len(context.captured) == 1 for context in capturing)
    # One more per instance and variant, for all other sizes.
    assert len(tensorrt.contexts) == len(capturing) + 2 * 2
    # The activation memory is allocated once per instance.
    assert len({context.workspace for context in tensorrt.contexts}) == 2
    for side, count in ((96, 2), (64, 2), (256, 1), (64, 1), (64, 8), (96, 1), (64, 7)):
        images = make_images(*range(count), height_px=side, width_px=side)
        assert engine.run(images)["scores"][:, 0].tolist() == list(range(count))
        assert engine.run(images, flip=True)["scores"][:, 0].tolist() == [-x for x in range(count)]
    assert all(context.enqueued[-1] == context.captured[0] for context in capturing)
    engine.close()


@pytest.mark.usefixtures("tensorrt")
@pytest.mark.parametrize(
    "failure",
    [
        "cannot be captured",
        "cudaStreamBeginCapture",
        "cudaStreamEndCapture",
        "cudaGraphInstantiate",
    ],
)
def test_tensorrt_runs_without_cuda_graphs_if_a_capture_fails(
    tmp_path: Path, cuda: FakeCudaRuntime, caplog: pytest.LogCaptureFixture, failure: str
) -> None:
    fields = {"cannot_capture_batch": 4} if failure == "cannot be captured" else {}
    package = make_package(tmp_path, [engine_artifact()], **fields)
    cuda.fail_next(failure, cudaError_t.cudaErrorMemoryAllocation)
    engine = open_engine(package, "tensorrt", threads=1)
    for count in range(1, 9):
        assert scores(engine, *range(count)) == list(range(count))
    assert cuda.calls["cudaGraphLaunch"] == 0
    assert engine.description.endswith("on NVIDIA L4, without CUDA graphs")
    (warning,) = (record for record in caplog.records if "CUDA graphs" in record.message)
    assert warning.levelname == "WARNING"
    assert "runs without CUDA graphs: they could not be captured: a batch of" in warning.message
    assert failure in warning.message
    engine.close()
    assert cuda.alive == 0


@pytest.mark.usefixtures("tensorrt")
def test_a_sticky_error_during_a_capture_is_not_a_failed_capture(
    package: ModelPackage, cuda: FakeCudaRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_gpu(*_: object) -> tuple[cudaError_t, None]:
        cuda._sticky = cudaError_t.cudaErrorIllegalAddress
        return cudaError_t.cudaErrorIllegalAddress, None

    monkeypatch.setattr(cuda, "cudaGraphInstantiate", break_gpu)
    with pytest.raises(EngineBrokenError, match="cudaErrorIllegalAddress"):
        open_engine(package, "tensorrt", threads=1)


def test_batches_are_padded_to_the_next_batch_size(
    tensorrt_rtx: FakeTensorrt, package: ModelPackage
) -> None:
    engine = open_engine(package, "tensorrt-rtx", threads=1, max_batch_size=6)
    for context in tensorrt_rtx.contexts:
        context.enqueued.clear()
    padded = []
    for count in range(1, 7):
        scores(engine, *range(count))
        padded += [shape[0] for context in tensorrt_rtx.contexts for shape in context.enqueued]
        for context in tensorrt_rtx.contexts:
            context.enqueued.clear()
    assert padded == [1, 2, 4, 4, 6, 6]
    engine.close()


@pytest.mark.usefixtures("tensorrt")
def test_captures_only_batch_sizes_up_to_the_maximum_of_the_service(
    package: ModelPackage, cuda: FakeCudaRuntime
) -> None:
    engine = open_engine(package, "tensorrt", threads=1, max_batch_size=3)
    assert engine.max_batch_size == 3
    assert cuda.calls["cudaGraphInstantiate"] == 2 * 2 * 3
    assert scores(engine, 1, 2, 3) == [1, 2, 3]
    engine.close()


@pytest.mark.usefixtures("tensorrt")
def test_pads_to_the_minimum_batch_size_of_the_engine(tmp_path: Path) -> None:
    artifact = engine_artifact(batch={"min": 2, "opt": 4, "max": 6})
    engine = open_engine(
        make_package(
            tmp_path, [artifact], input_spec=FREE, height_px=(32, 256), width_px=(32, 256)
        ),
        "tensorrt",
        threads=1,
    )
    assert scores(engine, 9) == [9]
    assert engine.run(make_images(5, height_px=96, width_px=96))["scores"].tolist() == [[5]]
    engine.close()


def test_a_failed_enqueue_is_reported_with_the_messages_of_the_library(
    tensorrt: FakeTensorrt, tmp_path: Path
) -> None:
    package = full_package(tmp_path, FREE)
    engine = open_engine(package, "tensorrt", threads=1)
    for context in tensorrt.contexts:
        context.fail_next = True
    with pytest.raises(RuntimeError, match=r"\(2, 96, 96, 3\) failed \(enqueue failed for a test"):
        engine.run(make_images(1, 2, height_px=96, width_px=96))
    with pytest.raises(ValueError, match=r"\(1, 16, 16, 3\) \(images: outside of the profile"):
        engine.run(make_images(1, height_px=16, width_px=16))
    assert scores(engine, 4) == [4]
    engine.close()


def test_a_sticky_error_raises_engine_broken_error(
    open_backend: Callable[[ModelPackage], Engine], package: ModelPackage, cuda: FakeCudaRuntime
) -> None:
    engine = open_backend(package)
    cuda._sticky = cudaError_t.cudaErrorIllegalAddress
    for _ in range(3):  # more often than there are instances
        with pytest.raises(
            EngineBrokenError, match=r"cudaErrorIllegalAddress.*Restart the service"
        ):
            scores(engine, 1)


@pytest.mark.usefixtures("tensorrt")
def test_auto_tries_no_other_backend_after_a_sticky_error(
    tmp_path: Path,
) -> None:
    package = make_package(tmp_path, [engine_artifact()], out_of_bounds=True)
    with pytest.raises(EngineBrokenError, match="cudaErrorIllegalAddress"):
        open_engine(package, "auto", threads=1)


def test_onnxruntime_cuda_prefers_fp16_and_disables_tf32(
    onnxruntime: FakeOnnxRuntime, tmp_path: Path
) -> None:
    package = make_package(tmp_path, [half_precision_artifact()])
    engine = open_engine(package, "onnxruntime-cuda", threads=1, max_batch_size=4)
    assert scores(engine, 10) == [20]
    assert engine.description.endswith("CUDAExecutionProvider, fp16 on NVIDIA L4")
    (session,) = onnxruntime.sessions
    assert session.provider_options["use_tf32"] == "0"
    assert session.provider_options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert len(session.graphs) == 2 * 3  # two instances; batch sizes 1, 2 and 4
    engine.close()


@pytest.mark.parametrize(
    ("options", "provider_options", "asynchronous", "num_graphs"),
    [
        (CudaOptions(), {"enable_cuda_graph": "1"}, "1", 2 * 4),
        (CudaOptions(synchronize=True), {"enable_cuda_graph": "1"}, "0", 2 * 4),
        (CudaOptions(cuda_graphs=False), {"enable_cuda_graph": "0"}, "1", 0),
        (
            CudaOptions(cudnn_conv_algo_search="EXHAUSTIVE"),
            {"cudnn_conv_algo_search": "EXHAUSTIVE"},
            "1",
            2 * 4,
        ),
    ],
)
def test_onnxruntime_receives_the_cuda_options(
    onnxruntime: FakeOnnxRuntime,
    tmp_path: Path,
    options: CudaOptions,
    provider_options: dict[str, str],
    asynchronous: str,
    num_graphs: int,
) -> None:
    package = make_package(tmp_path, [])
    engine = open_cuda_engine(package, EngineOptions(threads=1), options)
    assert scores(engine, 3, 4, 5) == [3, 4, 5]
    (session,) = onnxruntime.sessions
    assert provider_options.items() <= session.provider_options.items()
    synchronization = "disable_synchronize_execution_providers"
    assert {entries[synchronization] for entries in session.run_options} == {asynchronous}
    assert len(session.graphs) == num_graphs
    assert "without CUDA graphs" not in engine.description
    engine.close()


def test_onnxruntime_runs_without_cuda_graphs_if_it_cannot_capture(
    onnxruntime: FakeOnnxRuntime, package: ModelPackage, caplog: pytest.LogCaptureFixture
) -> None:
    onnxruntime.can_capture = False
    engine = open_engine(package, "onnxruntime-cuda", threads=1)
    assert scores(engine, 1, 2, 3) == [1, 2, 3]
    assert "runs without CUDA graphs: they could not be captured: " in caplog.text
    assert engine.description.endswith("fp32 on NVIDIA L4, without CUDA graphs")
    engine.close()


def test_onnxruntime_runs_without_cuda_graphs_if_a_capture_fails(
    onnxruntime: FakeOnnxRuntime,
    package: ModelPackage,
    cuda: FakeCudaRuntime,
    caplog: pytest.LogCaptureFixture,
) -> None:
    onnxruntime.failing_capture = str(2 * 4 + 1)  # batches of 4 in the second instance
    engine = open_engine(package, "onnxruntime-cuda", threads=1)
    for count in range(1, 9):
        assert scores(engine, *range(count)) == list(range(count))
    assert engine.description.endswith("fp32 on NVIDIA L4, without CUDA graphs")
    assert "stream is capturing" in caplog.text
    enabled = [session.provider_options["enable_cuda_graph"] for session in onnxruntime.sessions]
    assert enabled == ["1", "1", "0", "0"]
    engine.close()
    assert cuda.alive == 0


def test_rtx_stores_its_runtime_cache_for_the_next_start(
    tensorrt_rtx: FakeTensorrt, package: ModelPackage
) -> None:
    open_engine(package, "tensorrt-rtx", threads=1).close()
    cache = package.directory / ".tensorrt_rtx0.engine.runtime_cache"
    assert cache.read_bytes() == b"cache of this GPU:\x01\x02\x04\x08"
    written_at = cache.stat().st_mtime_ns
    open_engine(package, "tensorrt-rtx", threads=1).close()
    assert cache.stat().st_mtime_ns == written_at
    cache.write_bytes(b"cache of another GPU:\x07")
    open_engine(package, "tensorrt-rtx", threads=1).close()
    assert cache.read_bytes() == b"cache of this GPU:\x01\x02\x04\x08"
    assert {context.runtime_config.cuda_graph_strategy for context in tensorrt_rtx.contexts} == {
        tensorrt_rtx.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    }
    assert [path.name for path in package.directory.glob(".*") if path != cache] == [
        ".tensorrt_rtx1.engine.runtime_cache"
    ]


@pytest.mark.usefixtures("tensorrt_rtx")
def test_rtx_runs_a_package_in_a_read_only_directory(
    package: ModelPackage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, _: bytes) -> int:
        raise OSError(30, "Read-only file system", str(path))

    caplog.set_level("INFO")
    monkeypatch.setattr(Path, "write_bytes", refuse)
    engine = open_engine(package, "tensorrt-rtx", threads=1)
    assert scores(engine, 3) == [3]
    assert "not stored for the next start: [Errno 30] Read-only file system" in caplog.text
    engine.close()
