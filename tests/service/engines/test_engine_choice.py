"""Which backend a machine gets, and what each of the others says when it is refused."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from support.engines import engine_artifact, half_precision_artifact, make_images, make_package
from support.fake_cuda import FakeCudaRuntime, cudaError_t
from support.fake_onnxruntime import FakeOnnxRuntime
from support.fake_tensorrt import FakeTensorrt

from model_package import FreeSize, InputSpec, ModelPackage
from model_package.manifest import EngineArtifact
from service.engines import BACKENDS, EngineUnavailableError, open_engine
from service.settings import Settings

RTX = {"backend": "tensorrt_rtx", "version": "1.7.1.116"}
Place = Callable[[str, ModuleType | None], None]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    """Put a module where it is imported from; None: it is not installed."""
    return lambda name, module: monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def gpu(place: Place) -> FakeCudaRuntime:
    """An L4 with both TensorRT libraries and ONNX Runtime for CUDA."""
    cuda = FakeCudaRuntime()
    place("cuda.bindings.runtime", cuda)  # type: ignore[arg-type]
    place("tensorrt", FakeTensorrt(cuda, "10.9.0.34"))
    place("tensorrt_rtx", FakeTensorrt(cuda, "1.7.1.116", rtx=True))
    place("onnxruntime", FakeOnnxRuntime(cuda))
    return cuda


def refusal(package: ModelPackage, backend: str = "tensorrt") -> str:
    with pytest.raises(EngineUnavailableError) as caught:
        open_engine(package, backend, threads=1)
    return str(caught.value)


def test_the_setting_names_every_backend() -> None:
    names = Settings.model_fields["backend"].annotation.__args__  # type: ignore[union-attr]
    assert names == ("auto", *BACKENDS)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("engines", "chosen", "refused"),
    [
        ([engine_artifact(), engine_artifact("r.engine", **RTX)], "TensorRT 10.9.0.34", []),
        ([engine_artifact("r.engine", **RTX)], "TensorRT-RTX 1.7.1.116", ["tensorrt"]),
        ([], "CUDAExecutionProvider", ["tensorrt", "tensorrt-rtx"]),
    ],
)
def test_auto_takes_the_first_that_works(
    engines: list[EngineArtifact],
    chosen: str,
    refused: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    engine = open_engine(make_package(tmp_path, engines), "auto", threads=1)
    assert chosen in engine.description
    assert "on NVIDIA L4" in engine.description
    assert [name for name in BACKENDS if f"painted: not {name}: " in caplog.text] == refused
    engine.close()


def test_auto_ends_at_the_cpu(
    tmp_path: Path, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    place("cuda.bindings.runtime", None)
    engine = open_engine(make_package(tmp_path, [engine_artifact()]), "auto", threads=1)
    assert "CPUExecutionProvider" in engine.description
    assert "not tensorrt: the CUDA bindings are not installed" in caplog.text


def test_auto_lists_every_reason_when_nothing_works(tmp_path: Path, place: Place) -> None:
    place("cuda.bindings.runtime", None)
    place("onnxruntime", None)
    text = refusal(make_package(tmp_path), "auto")
    for name in BACKENDS:
        assert f"{name}: " in text


def test_without_bindings_the_extra_is_named(tmp_path: Path, place: Place) -> None:
    place("cuda.bindings.runtime", None)
    assert "to use a GPU install the extra 'gpu'." in refusal(make_package(tmp_path))


def test_without_a_gpu(tmp_path: Path, place: Place) -> None:
    place("cuda.bindings.runtime", FakeCudaRuntime(devices=0))  # type: ignore[arg-type]
    text = refusal(make_package(tmp_path, [engine_artifact()]))
    assert "no NVIDIA GPU here, or no driver for it (CUDA error 100: cudaErrorNoDevice)" in text
    assert "nvidia-smi" in text


def test_without_a_driver_the_real_bindings_say_so(tmp_path: Path) -> None:
    bindings = pytest.importorskip("cuda.bindings.runtime")
    if not int(bindings.cudaGetDeviceCount()[0]):
        pytest.skip("there is a GPU here; this is about machines without one")
    assert "no NVIDIA GPU here, or no driver for it (CUDA error" in refusal(make_package(tmp_path))


@pytest.mark.usefixtures("gpu")
def test_without_an_engine_the_command_is_given(tmp_path: Path) -> None:
    package = make_package(tmp_path, [engine_artifact("r.engine", **RTX)])
    assert refusal(package) == (
        "the package has no TensorRT engine. "
        f"Make one here: centernet-export build {tmp_path} --backend tensorrt"
    )
    other = make_package(tmp_path, [engine_artifact()])
    assert refusal(other, "tensorrt-rtx") == (
        "the package has no TensorRT-RTX engine. "
        f"Make one here: centernet-export build {tmp_path} --backend tensorrt-rtx"
    )


@pytest.mark.usefixtures("gpu")
def test_without_the_library_the_extra_is_named(tmp_path: Path, place: Place) -> None:
    place("tensorrt", None)
    text = refusal(make_package(tmp_path, [engine_artifact()]))
    assert text.startswith("TensorRT is not installed (")
    assert text.endswith("beside the extra 'gpu' install 'tensorrt'.")


@pytest.mark.usefixtures("gpu")
def test_a_library_that_does_not_start_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_libnvinfer(name: str) -> ModuleType:
        if name == "tensorrt":
            raise OSError("libnvinfer.so.10: cannot open shared object file")
        return sys.modules[name]

    monkeypatch.setattr(importlib, "import_module", no_libnvinfer)
    monkeypatch.setattr("service.engines.tensorrt.import_module", no_libnvinfer)
    text = refusal(make_package(tmp_path, [engine_artifact()]))
    assert text.startswith("TensorRT is installed but does not start (libnvinfer.so.10")


@pytest.mark.usefixtures("gpu")
def test_another_version_and_another_gpu_are_both_said(tmp_path: Path) -> None:
    engines = [
        engine_artifact("a.engine", version="10.16.1.11"),
        engine_artifact("b.engine", compute_capability="9.0"),
        engine_artifact("c.engine", gpu="NVIDIA L40S"),
        engine_artifact("d.engine", version="11.4.0.106", compute_capability="12.0"),
    ]
    text = refusal(make_package(tmp_path, engines))
    assert text.startswith("none of the package's TensorRT engines is for this machine: ")
    for part in (
        "a.engine needs TensorRT 10.16.1.11, 10.9.0.34 is installed; ",
        "b.engine needs compute capability 9.0, this GPU (NVIDIA L4) has 8.9; ",
        "c.engine was tuned on a NVIDIA L40S, this GPU is a NVIDIA L4; ",
        "d.engine needs TensorRT 11.4.0.106, 10.9.0.34 is installed and needs compute capability "
        "12.0, this GPU (NVIDIA L4) has 8.9. Make one here: centernet-export build",
    ):
        assert part in text


@pytest.mark.usefixtures("gpu")
def test_of_several_machines_the_right_engine_is_taken(tmp_path: Path) -> None:
    engines = [
        engine_artifact("a.engine", compute_capability="9.0", precision="fp16"),
        engine_artifact("b.engine"),
        engine_artifact("c.engine", precision="fp16"),
        engine_artifact("d.engine", precision="fp16", gpu="NVIDIA L4"),
    ]
    package = make_package(tmp_path, [half_precision_artifact(), *engines])
    (tmp_path / "c.engine").write_bytes(b"not this one")
    engine = open_engine(package, "tensorrt", threads=1)
    assert engine.description == "TensorRT 10.9.0.34, fp16 on NVIDIA L4"
    assert engine.run(make_images(10))["scores"].tolist() == [[20]]
    engine.close()


@pytest.mark.usefixtures("gpu")
def test_one_precision_for_both_variants(tmp_path: Path) -> None:
    engines = [
        engine_artifact("a.engine", precision="fp16"),
        engine_artifact("b.engine"),
        engine_artifact("c.engine", flip=True),
    ]
    package = make_package(tmp_path, engines, flips=(False, True))
    engine = open_engine(package, "tensorrt", threads=1)
    assert engine.run(make_images(10))["scores"].tolist() == [[10]]
    engine.close()
    incomplete = make_package(tmp_path, engines[:2], flips=(False, True))
    assert "only of some: a.engine, b.engine. Make one here" in refusal(incomplete)


@pytest.mark.usefixtures("gpu")
def test_a_corrupted_engine_is_refused(tmp_path: Path) -> None:
    package = make_package(tmp_path, [engine_artifact()])
    (tmp_path / "model.engine").write_bytes(b"\x00 no plan")
    text = refusal(package)
    assert "model.engine cannot be loaded (Magic tag does not match). It is damaged" in text
    assert "Make one here: centernet-export build" in text


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        ({"outputs": [["scores", "float32", [1]]]}, "has the tensors ['images', 'scores'], which"),
        ({"input_dtype": "float32"}, "does not take uint8 images"),
        ({"height_px": (32, 32)}, "takes images of 64x32 to 64x32 px, the package promises 64x64"),
    ],
)
def test_an_engine_of_another_model_is_refused(
    tmp_path: Path, facts: dict[str, object], problem: str
) -> None:
    text = refusal(make_package(tmp_path, [engine_artifact()], **facts))  # type: ignore[arg-type]
    assert problem in text
    assert "Make one here" in text


@pytest.mark.usefixtures("gpu")
def test_an_output_of_another_type_is_refused(tmp_path: Path) -> None:
    outputs = [
        ["scores", "float32", [1]],
        ["class_ids", "int64", [1]],
        ["centers", "float32", [1, 2]],
        ["sizes", "float32", [1, 2]],
    ]
    text = refusal(make_package(tmp_path, [engine_artifact()], outputs=outputs))
    assert "gives class_ids as" in text


@pytest.mark.usefixtures("gpu")
def test_an_engine_of_one_size_does_not_do_for_free_sizes(tmp_path: Path) -> None:
    free = FreeSize(multiple_px=32, extra_px=1, max_side_px=250)
    spec = InputSpec(width_px=64, height_px=64, free_size=free)
    text = refusal(make_package(tmp_path, [engine_artifact()], input_spec=spec))
    assert "takes images of 64x64 to 64x64 px, the package promises 32x32 too" in text
    sides = {"height_px": (32, 192), "width_px": (32, 192)}
    text = refusal(make_package(tmp_path, [engine_artifact()], input_spec=spec, **sides))
    assert "the package promises 224x224 too" in text  # 256 is above 250
    sides = {"height_px": (32, 224), "width_px": (32, 224)}
    package = make_package(tmp_path, [engine_artifact()], input_spec=spec, **sides)
    open_engine(package, "tensorrt", threads=1).close()


def test_a_gpu_that_does_not_answer(tmp_path: Path, gpu: FakeCudaRuntime) -> None:
    gpu.fail_next("cudaGetDeviceProperties", cudaError_t.cudaErrorInvalidValue)
    text = refusal(make_package(tmp_path, [engine_artifact()]))
    assert text.startswith("it does not run on the first GPU: cudaGetDeviceProperties: CUDA error")


@pytest.mark.usefixtures("gpu")
def test_an_engine_that_needs_more_memory_than_there_is(tmp_path: Path) -> None:
    text = refusal(make_package(tmp_path, [engine_artifact()], too_large=True))
    assert text == "it does not run on NVIDIA L4: there is no execution context (out of memory)"


def test_a_cuda_provider_that_does_not_start_is_named(
    tmp_path: Path, gpu: FakeCudaRuntime, place: Place
) -> None:
    place("onnxruntime", FakeOnnxRuntime(gpu, starts=False))
    text = refusal(make_package(tmp_path), "onnxruntime-cuda")
    assert "CUDAExecutionProvider did not start" in text
    assert gpu.alive == 0
