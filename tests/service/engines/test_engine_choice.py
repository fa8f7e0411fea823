"""Selection of the backend, and the messages of backends that are unavailable."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from support.engines import engine_artifact, half_precision_artifact, make_images, make_package
from support.fake_cuda import FakeCudaRuntime
from support.fake_onnxruntime import FakeOnnxRuntime
from support.fake_tensorrt import FakeTensorrt

from model_package import FreeSize, InputSpec, ModelPackage
from model_package.gpu import Gpu
from model_package.manifest import EngineArtifact
from service.engines import (
    BACKENDS,
    Engine,
    EngineOptions,
    EngineUnavailableError,
    open_engine,
    select_engine,
)
from service.settings import Settings

RTX = {"backend": "tensorrt_rtx", "version": "1.7.1.116"}
ReplaceModule = Callable[[str, ModuleType | None], None]


@pytest.fixture
def replace_module(monkeypatch: pytest.MonkeyPatch) -> ReplaceModule:
    """Replace a module; None makes its import fail, as if it were not installed."""
    return lambda name, module: monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def gpu(replace_module: ReplaceModule, monkeypatch: pytest.MonkeyPatch) -> FakeCudaRuntime:
    """An L4 with both TensorRT libraries and the CUDA execution provider."""
    cuda = FakeCudaRuntime()
    cuda.install(monkeypatch)
    replace_module("tensorrt", FakeTensorrt(cuda, "10.9.0.34"))
    replace_module("tensorrt_rtx", FakeTensorrt(cuda, "1.7.1.116", rtx=True))
    replace_module("onnxruntime", FakeOnnxRuntime(cuda))
    return cuda


def unavailable_message(package: ModelPackage, backend: str = "tensorrt") -> str:
    with pytest.raises(EngineUnavailableError) as caught:
        open_engine(package, backend, threads=1)
    return str(caught.value)


def test_the_setting_accepts_every_backend() -> None:
    names = Settings.model_fields["backend"].annotation.__args__  # type: ignore[union-attr]
    assert names == ("auto", *BACKENDS)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("engines", "used", "unavailable"),
    [
        ([engine_artifact(), engine_artifact("r.engine", **RTX)], "TensorRT 10.9.0.34", []),
        ([engine_artifact("r.engine", **RTX)], "TensorRT-RTX 1.7.1.116", ["tensorrt"]),
        ([], "CUDAExecutionProvider", ["tensorrt", "tensorrt-rtx"]),
    ],
)
def test_auto_uses_the_first_available_backend(
    engines: list[EngineArtifact],
    used: str,
    unavailable: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", "service")
    engine = open_engine(make_package(tmp_path, engines), "auto", threads=1)
    assert used in engine.description
    assert "on NVIDIA L4" in engine.description
    assert [
        name
        for name in BACKENDS
        if f"painted: backend {name} (fp16 or fp32 or int8) is un" in caplog.text
    ] == unavailable
    engine.close()


def test_auto_falls_back_to_the_cpu(
    tmp_path: Path, replace_module: ReplaceModule, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "service")
    replace_module("cuda.bindings.runtime", None)
    replace_module("openvino", None)
    engine = open_engine(make_package(tmp_path, [engine_artifact()]), "auto", threads=1)
    assert "CPUExecutionProvider" in engine.description
    for reason in (
        "tensorrt (fp16 or fp32 or int8) is unavailable: the CUDA bindings are not installed",
        "openvino (fp32) is unavailable: OpenVINO cannot be imported",
    ):
        assert f"painted: backend {reason}" in caplog.text


@pytest.mark.parametrize("has_gpu", [False, True])
def test_a_selection_names_the_engine_and_why_others_were_skipped(
    tmp_path: Path,
    replace_module: ReplaceModule,
    monkeypatch: pytest.MonkeyPatch,
    has_gpu: bool,
) -> None:
    replace_module("cuda.bindings.runtime", None)
    replace_module("openvino", None)
    gpu = Gpu("NVIDIA L4", "8.9") if has_gpu else None
    monkeypatch.setattr("service.engines.backends.find_gpu", lambda: gpu)
    package, options = make_package(tmp_path), EngineOptions(threads=1)
    selection = select_engine(package, "auto", "fp32", options, lambda _: None)
    engine, *skipped = str(selection).split("; not ")
    assert engine == selection.engine.description
    assert skipped[-1].startswith("openvino (fp32): OpenVINO cannot be imported")
    if has_gpu:
        assert skipped[0].startswith("tensorrt (fp32), tensorrt-rtx (fp32): the CUDA bindings are ")
        assert skipped[1].startswith("onnxruntime-cuda (fp32): ONNX Runtime ")
    else:
        reason = "no NVIDIA GPU was found"
        assert skipped[:-1] == [f"tensorrt, tensorrt-rtx, onnxruntime-cuda: {reason}"]
    only = select_engine(package, "onnxruntime-cpu", "auto", options, lambda _: None)
    assert str(only) == only.engine.description


def test_auto_uses_openvino_on_a_cpu(tmp_path: Path) -> None:
    engine = open_engine(make_package(tmp_path), "auto", threads=1, precision="fp32")
    assert engine.description.startswith("OpenVINO 2")
    assert engine.precision == "fp32"


def test_a_backend_rejects_a_precision_that_it_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailableError) as caught:
        open_engine(make_package(tmp_path), "onnxruntime-cpu", threads=1, precision="bf16")
    assert str(caught.value) == (
        "the backend onnxruntime-cpu does not compute in bf16, only in fp32. "
        "Choose another backend or precision."
    )


@pytest.mark.usefixtures("gpu")
def test_fp32_excludes_fp16_engines(tmp_path: Path) -> None:
    engines = [engine_artifact("a.engine", precision="fp16"), engine_artifact("b.engine")]
    package = make_package(tmp_path, [half_precision_artifact(), *engines])
    for precision, scores in (("auto", [[20]]), ("fp32", [[10]])):
        engine = open_engine(package, "tensorrt", threads=1, precision=precision)
        assert engine.run(make_images(10))["scores"].tolist() == scores
        engine.close()


def test_a_refused_engine_is_closed_and_the_next_one_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "service")
    refused: list[Engine] = []

    def accept(engine: Engine) -> None:
        if not engine.is_reference:
            refused.append(engine)
            raise EngineUnavailableError("its scores differ")

    options = EngineOptions(threads=1)
    selection = select_engine(make_package(tmp_path), "auto", "fp32", options, accept)
    assert selection.candidate.backend == "onnxruntime-cpu"
    assert selection.engine.is_reference
    assert str(selection).endswith("; not openvino (fp32): its scores differ")
    assert "painted: backend openvino (fp32) is unavailable: its scores differ" in caplog.text
    with pytest.raises(KeyError):
        refused[0].run(make_images(10))


def test_auto_lists_every_reason_if_no_backend_is_available(
    tmp_path: Path, replace_module: ReplaceModule
) -> None:
    replace_module("cuda.bindings.runtime", None)
    replace_module("onnxruntime", None)
    replace_module("openvino", None)
    text = unavailable_message(make_package(tmp_path), "auto")
    for name in BACKENDS:
        assert f"{name} (" in text


def test_missing_cuda_bindings_are_reported_with_the_extra(
    tmp_path: Path, replace_module: ReplaceModule
) -> None:
    replace_module("cuda.bindings.runtime", None)
    assert "to use a GPU install the extra 'gpu'." in unavailable_message(make_package(tmp_path))


def test_a_missing_gpu_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCudaRuntime(gpu=None).install(monkeypatch)
    text = unavailable_message(make_package(tmp_path, [engine_artifact()]))
    assert "no NVIDIA GPU here, or no driver for it (CUDA error 100: cudaErrorNoDevice)" in text
    assert "nvidia-smi lists it, with driver 580 or newer" in text


def test_the_real_bindings_report_a_missing_driver(tmp_path: Path) -> None:
    bindings = pytest.importorskip("cuda.bindings.runtime")
    if not int(bindings.cudaGetDeviceCount()[0]):
        pytest.skip("needs a machine without a GPU")
    assert "no NVIDIA GPU here, or no driver for it (CUDA error" in unavailable_message(
        make_package(tmp_path)
    )


@pytest.mark.usefixtures("gpu")
def test_a_missing_engine_is_reported_with_the_build_command(tmp_path: Path) -> None:
    package = make_package(tmp_path, [engine_artifact("r.engine", **RTX)])
    assert unavailable_message(package) == (
        "the package has no TensorRT engine. "
        f"Build one: centernet-export build {tmp_path} --backend tensorrt"
    )
    other = make_package(tmp_path, [engine_artifact()])
    assert unavailable_message(other, "tensorrt-rtx") == (
        "the package has no TensorRT-RTX engine. "
        f"Build one: centernet-export build {tmp_path} --backend tensorrt-rtx"
    )


@pytest.mark.usefixtures("gpu")
def test_a_missing_library_is_reported_with_the_install_command(
    tmp_path: Path, replace_module: ReplaceModule
) -> None:
    replace_module("tensorrt", None)
    text = unavailable_message(make_package(tmp_path, [engine_artifact()]))
    assert text.startswith("TensorRT is not installed (")
    assert text.endswith(
        "Install it with: pip install 'centernet-serving[gpu,tensorrt]' "
        "--extra-index-url https://pypi.nvidia.com"
    )


@pytest.mark.usefixtures("gpu")
def test_a_library_that_cannot_be_imported_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_libnvinfer(name: str) -> ModuleType:
        if name == "tensorrt":
            raise OSError("libnvinfer.so.10: cannot open shared object file")
        return sys.modules[name]

    monkeypatch.setattr("model_package.tensorrt_libraries.import_module", no_libnvinfer)
    text = unavailable_message(make_package(tmp_path, [engine_artifact()]))
    assert text.startswith("TensorRT is installed but cannot be imported (libnvinfer.so.10")


@pytest.mark.usefixtures("gpu")
def test_mismatches_of_version_and_gpu_are_all_reported(tmp_path: Path) -> None:
    engines = [
        engine_artifact("a.engine", version="10.16.1.11"),
        engine_artifact("b.engine", compute_capability="9.0"),
        engine_artifact("c.engine", gpu="NVIDIA L40S"),
        engine_artifact("d.engine", version="11.4.0.106", compute_capability="12.0"),
    ]
    text = unavailable_message(make_package(tmp_path, engines))
    assert text.startswith("none of the package's TensorRT engines runs on this machine: ")
    for part in (
        "a.engine needs TensorRT 10.16.1.11, 10.9.0.34 is installed; ",
        "b.engine needs compute capability 9.0, this GPU (NVIDIA L4) has 8.9; ",
        "c.engine was tuned on a NVIDIA L40S, this GPU is a NVIDIA L4; ",
        "d.engine needs TensorRT 11.4.0.106, 10.9.0.34 is installed and needs compute capability "
        "12.0, this GPU (NVIDIA L4) has 8.9. Build one: centernet-export build",
    ):
        assert part in text


@pytest.mark.usefixtures("gpu")
def test_selects_the_engine_for_this_machine(tmp_path: Path) -> None:
    engines = [
        engine_artifact("a.engine", compute_capability="9.0", precision="fp16"),
        engine_artifact("b.engine"),
        engine_artifact("c.engine", precision="fp16"),
        engine_artifact("d.engine", precision="fp16", gpu="NVIDIA L4"),
    ]
    package = make_package(tmp_path, [half_precision_artifact(), *engines])
    (tmp_path / "c.engine").write_bytes(b"not selected")
    engine = open_engine(package, "tensorrt", threads=1)
    assert engine.description == "TensorRT 10.9.0.34, fp16 on NVIDIA L4"
    assert engine.run(make_images(10))["scores"].tolist() == [[20]]
    engine.close()


@pytest.mark.usefixtures("gpu")
def test_selects_one_precision_for_both_values_of_flip(tmp_path: Path) -> None:
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
    assert "only for some of them: a.engine, b.engine. Build one" in unavailable_message(incomplete)


@pytest.mark.usefixtures("gpu")
def test_a_corrupted_engine_is_reported(tmp_path: Path) -> None:
    package = make_package(tmp_path, [engine_artifact()])
    (tmp_path / "model.engine").write_bytes(b"\x00 no plan")
    text = unavailable_message(package)
    assert "model.engine cannot be loaded (Magic tag does not match). It is damaged" in text
    assert "Build one: centernet-export build" in text


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("plan_fields", "problem"),
    [
        ({"outputs": [["scores", "float32", [1]]]}, "has the tensors ['images', 'scores'], which"),
        ({"input_dtype": "float32"}, "does not take uint8 images"),
        ({"height_px": (32, 32)}, "takes images of 64x32 to 64x32 px, the manifest allows 64x64"),
    ],
)
def test_an_engine_of_another_model_is_rejected(
    tmp_path: Path, plan_fields: dict[str, object], problem: str
) -> None:
    text = unavailable_message(make_package(tmp_path, [engine_artifact()], **plan_fields))  # type: ignore[arg-type]
    assert problem in text
    assert "Build one" in text


@pytest.mark.usefixtures("gpu")
def test_an_output_of_another_dtype_is_rejected(tmp_path: Path) -> None:
    outputs = [
        ["scores", "float32", [1]],
        ["class_ids", "int64", [1]],
        ["centers", "float32", [1, 2]],
        ["sizes", "float32", [1, 2]],
    ]
    text = unavailable_message(make_package(tmp_path, [engine_artifact()], outputs=outputs))
    assert "has the output class_ids as" in text


@pytest.mark.usefixtures("gpu")
def test_an_engine_must_accept_every_size_that_the_manifest_allows(tmp_path: Path) -> None:
    free = FreeSize(multiple_px=32, extra_px=1, max_side_px=250)
    spec = InputSpec(width_px=64, height_px=64, free_size=free)
    text = unavailable_message(make_package(tmp_path, [engine_artifact()], input_spec=spec))
    assert "takes images of 64x64 to 64x64 px, the manifest allows 32x32 too" in text
    sides = {"height_px": (32, 192), "width_px": (32, 192)}
    text = unavailable_message(
        make_package(tmp_path, [engine_artifact()], input_spec=spec, **sides)
    )
    assert "the manifest allows 224x224 too" in text  # 256 is above 250
    sides = {"height_px": (32, 224), "width_px": (32, 224)}
    package = make_package(tmp_path, [engine_artifact()], input_spec=spec, **sides)
    open_engine(package, "tensorrt", threads=1).close()


def test_a_gpu_that_the_driver_does_not_identify_is_reported(
    tmp_path: Path, gpu: FakeCudaRuntime
) -> None:
    gpu.gpu = None
    text = unavailable_message(make_package(tmp_path, [engine_artifact()]))
    assert text.startswith(
        "the CUDA runtime finds 1 GPU(s), but the driver (libcuda.so.1) does not"
    )


@pytest.mark.usefixtures("gpu")
def test_an_engine_that_does_not_fit_in_memory_is_reported(tmp_path: Path) -> None:
    text = unavailable_message(make_package(tmp_path, [engine_artifact()], too_large=True))
    assert text == (
        "the engine cannot be loaded on NVIDIA L4: no execution context could be created "
        "(out of memory)"
    )


def test_a_cuda_provider_that_does_not_start_is_reported(
    tmp_path: Path, gpu: FakeCudaRuntime, replace_module: ReplaceModule
) -> None:
    replace_module("onnxruntime", FakeOnnxRuntime(gpu, starts=False))
    text = unavailable_message(make_package(tmp_path), "onnxruntime-cuda")
    assert "CUDAExecutionProvider did not start" in text
    assert gpu.alive == 0
