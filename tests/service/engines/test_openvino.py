"""OpenVINO on the CPU: small graphs, the bundled models and the project's custom operators."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from support.engines import (
    check_concurrent_runs,
    half_precision_artifact,
    int8_artifact,
    make_images,
    make_package,
)
from support.openvino import compile_file

from model_export.onnx.corner_pool_functions import add_corner_pool_functions
from model_package import FreeSize, InputSpec, load_package
from service.engines import EngineUnavailableError, open_engine
from service.engines.cpu_instructions import bf16_problem
from service.self_test import make_self_test

needs_bf16 = pytest.mark.skipif(bf16_problem() is not None, reason=f"{bf16_problem()}")


def test_flip_selects_the_other_artifact(tmp_path: Path) -> None:
    package = make_package(tmp_path, flips=(False, True))
    engine = open_engine(package, "openvino", threads=1, precision="fp32")
    images = make_images(10, 20)
    assert engine.run(images)["scores"].tolist() == [[10], [20]]
    assert engine.run(images, flip=True)["scores"].tolist() == [[-10], [-20]]
    assert engine.run(images)["class_ids"].dtype == np.int32
    engine.close()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 11])
def test_batches_of_every_size_are_divided(tmp_path: Path, count: int) -> None:
    engine = open_engine(make_package(tmp_path), "openvino", threads=1, precision="fp32")
    values = list(range(count))
    outputs = engine.run(make_images(*values))
    assert outputs["scores"].tolist() == [[value] for value in values]
    assert outputs["centers"].shape == (count, 1, 2)


def test_large_networks_run_image_by_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engines.openvino._LARGE_FILE_BYTES", 0)
    engine = open_engine(make_package(tmp_path), "openvino", threads=1, precision="fp32")
    assert engine.run(make_images(*range(5)))["scores"].tolist() == [[0], [1], [2], [3], [4]]


def test_a_package_with_a_free_size_accepts_every_size(tmp_path: Path) -> None:
    free = FreeSize(multiple_px=32, extra_px=1, max_side_px=256)
    spec = InputSpec(width_px=64, height_px=64, free_size=free)
    package = make_package(tmp_path, input_spec=spec)
    engine = open_engine(package, "openvino", threads=1, precision="fp32")
    for height_px, width_px in ((64, 64), (32, 96), (256, 64)):
        images = make_images(10, 20, 30, height_px=height_px, width_px=width_px)
        assert engine.run(images)["scores"].tolist() == [[10], [20], [30]]


def test_accepts_every_kind_of_images(tmp_path: Path) -> None:
    engine = open_engine(make_package(tmp_path), "openvino", threads=1, precision="fp32")
    images = make_images(10, 20)
    read_only = images.copy()
    read_only.flags.writeable = False
    mirrored = images[:, ::-1]
    for batch in (images, read_only, mirrored, list(images), list(read_only), list(mirrored)):
        assert engine.run(batch)["scores"].tolist() == [[10], [20]]
        assert engine.run(batch[:1])["scores"].tolist() == [[10]]


def test_outputs_are_not_overwritten_by_the_next_run(tmp_path: Path) -> None:
    engine = open_engine(make_package(tmp_path), "openvino", threads=1, precision="fp32")
    first = engine.run(make_images(10, 20))
    engine.run(make_images(30, 40))
    assert first["scores"].tolist() == [[10], [20]]


def test_runs_the_fp32_files(tmp_path: Path) -> None:
    package = make_package(tmp_path, [half_precision_artifact()])
    engine = open_engine(package, "openvino", threads=1, precision="fp32")
    assert engine.run(make_images(10))["scores"].tolist() == [[10]]
    assert engine.description.endswith(", fp32 on CPU")


def test_int8_runs_the_int8_file_and_is_preferred(tmp_path: Path) -> None:
    package = make_package(tmp_path, [half_precision_artifact(), int8_artifact()])
    for precision in ("int8", "auto"):
        engine = open_engine(package, "openvino", threads=1, precision=precision)
        assert engine.run(make_images(10))["scores"].tolist() == [[30]]
        assert engine.description.endswith(", int8 on CPU")
        assert engine.precision == "int8"


def test_a_package_without_an_int8_file_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "service")
    package = make_package(tmp_path)
    reason = "the package has no int8 file, only model.onnx; centernet-export quantize adds one"
    for backend in ("openvino", "auto"):
        with pytest.raises(EngineUnavailableError, match=reason):
            open_engine(package, backend, threads=1, precision="int8")
    with pytest.raises(EngineUnavailableError, match="does not compute in int8, only in fp32"):
        open_engine(package, "onnxruntime-cpu", threads=1, precision="int8")
    assert open_engine(package, "openvino", threads=1).precision != "int8"
    assert (
        "painted: backend openvino (int8) is unavailable: the package has no int8 file"
        in caplog.text
    )


def test_a_damaged_int8_file_is_not_used(tmp_path: Path) -> None:
    package = make_package(tmp_path, [int8_artifact()])
    (package.directory / "int8.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineUnavailableError, match=r"cannot load .*int8\.onnx: \w+"):
        open_engine(package, "openvino", threads=1, precision="int8")
    engine = open_engine(package, "openvino", threads=1)
    assert engine.run(make_images(10))["scores"].tolist() == [[10]]


def test_concurrent_runs_return_their_own_rows(tmp_path: Path) -> None:
    engine = open_engine(
        make_package(tmp_path), "openvino", threads=1, concurrency=3, precision="fp32"
    )
    assert engine.concurrency == 3
    check_concurrent_runs(engine)


def test_a_damaged_file_is_reported(tmp_path: Path) -> None:
    package = make_package(tmp_path, flips=(False, True))
    (package.directory / "model_flip.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineUnavailableError, match=r"cannot load .*model_flip\.onnx: \w+"):
        open_engine(package, "openvino", threads=1, precision="fp32")


def test_a_missing_library_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineUnavailableError, match="install the extra 'serve'"):
        open_engine(make_package(tmp_path), "openvino", threads=1)


def test_bf16_is_refused_without_its_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "service")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")
    package = make_package(tmp_path)
    for backend in ("openvino", "auto"):
        with pytest.raises(EngineUnavailableError, match="AVX512_CORE_VNNI excludes bf16"):
            open_engine(package, backend, threads=1, precision="bf16")
    engine = open_engine(package, "openvino", threads=1, precision="auto")
    assert engine.precision == "fp32"
    assert "painted: backend openvino (bf16) is unavailable: ONEDNN_MAX_CPU_ISA" in caplog.text


@pytest.mark.parametrize("name", ["blood_cells", "people", "road_vehicles"])
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
def test_the_bundled_models_agree_with_onnxruntime(
    project: Path, name: str, precision: str
) -> None:
    package = load_package(project / "models" / name)
    reference = open_engine(package, "onnxruntime-cpu", threads=1)
    engine = open_engine(package, "openvino", threads=1, precision=precision)
    self_test = make_self_test(package, engine)
    assert self_test.is_recorded
    self_test.check(engine)
    images = self_test.pixels[np.newaxis]
    difference = np.abs(engine.run(images)["scores"] - reference.run(images)["scores"]).max()
    is_rounded = difference > 1e-4
    assert is_rounded == (precision == "bf16"), "it computes in the stated precision"


_CHECK_INT8 = """
import sys
from pathlib import Path
from model_package import load_package
from service.engines import open_engine
from service.self_test import make_self_test
package = load_package(Path(sys.argv[1]))
engine = open_engine(package, "openvino", threads=1, precision="int8")
make_self_test(package, engine).check(engine)
"""


@pytest.mark.parametrize("name", ["blood_cells", "people"])
@pytest.mark.parametrize("instructions", ["", "AVX512_CORE", "AVX2"])
def test_int8_agrees_with_the_references_also_without_vnni(
    project: Path, name: str, instructions: str
) -> None:
    """Without VNNI, oneDNN multiplies in pairs whose 16-bit sums could saturate."""
    done = subprocess.run(
        [sys.executable, "-c", _CHECK_INT8, str(project / "models" / name)],
        cwd=project,
        env=os.environ | ({"ONEDNN_MAX_CPU_ISA": instructions} if instructions else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _run_openvino(model: onnx.ModelProto, side_px: int, *inputs: NDArray[np.float32]) -> object:
    return compile_file(model.SerializeToString(), side_px)(list(inputs))[0]


def _run_onnxruntime(model: onnx.ModelProto, *inputs: NDArray[np.float32]) -> object:
    session = pytest.importorskip("onnxruntime").InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [entry.name for entry in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))[0]


def _model(nodes: list[onnx.NodeProto], inputs: int, opset: int = 19) -> onnx.ModelProto:
    values = [
        helper.make_tensor_value_info(f"x{index}", TensorProto.FLOAT, [None] * 4)
        for index in range(inputs)
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)
    graph = helper.make_graph(nodes, "operator", values, [output])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("centernet", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize(
    ("op_type", "inputs"),
    [
        ("corner_pool_top", 1),
        ("corner_pool_bottom", 1),
        ("corner_pool_left", 1),
        ("corner_pool_right", 1),
        ("corner_pool_top_left_sum", 2),
        ("corner_pool_bottom_right_sum", 2),
    ],
)
def test_corner_pooling_equals_the_functions_of_the_file(op_type: str, inputs: int) -> None:
    names = [f"x{index}" for index in range(inputs)]
    attributes = {"plugin_namespace": "centernet", "plugin_version": "1"}
    node = helper.make_node(op_type, names, ["y"], domain="centernet", **attributes)
    model = _model([node], inputs)
    add_corner_pool_functions(model, 16)
    random = np.random.default_rng(1)
    for shape in ((1, 3, 16, 16), (2, 1, 5, 11)):
        maps = [random.normal(size=shape).astype(np.float32) for _ in range(inputs)]
        result = _run_openvino(model, 64, *maps)
        assert np.array_equal(result, _run_onnxruntime(model, *maps))


@pytest.mark.parametrize("optional", [0, 1, 2])
def test_deformable_convolution_agrees_with_onnxruntime(optional: int) -> None:
    names = [f"x{index}" for index in range(3 + optional)]
    node = helper.make_node("DeformConv", names, ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    model = _model([node], 3 + optional)
    if optional:
        model.graph.input[3].type.tensor_type.ClearField("shape")
        model.graph.input[3].type.tensor_type.shape.dim.add()
    random = np.random.default_rng(1)
    shapes = [(2, 4, 9, 12), (6, 4, 3, 3), (2, 18, 9, 12), (6,), (2, 9, 9, 12)]
    values = [random.normal(size=shape).astype(np.float32) for shape in shapes[: 3 + optional]]
    result, expected = _run_openvino(model, 64, *values), _run_onnxruntime(model, *values)
    assert np.abs(np.subtract(result, expected)).max() < 1e-4
    assert np.std(expected) > 1


@needs_bf16
@pytest.mark.parametrize("name", ["blood_cells", "people", "road_vehicles"])
def test_bf16_writes_the_outputs_of_the_heads_in_float32(project: Path, name: str) -> None:
    package = load_package(project / "models" / name)
    engine = open_engine(package, "openvino", threads=1, precision="bf16")
    outputs = engine.run(make_self_test(package, engine).pixels[np.newaxis])
    for output in ("sizes", "depths", "dimensions", "rotations"):
        if output in outputs:
            bits = outputs[output].view(np.uint32)
            assert (bits & 0xFFFF).any(), f"{output} has only values of bf16"


_SIGNAL_AFTER_CLOSE = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests")
from support.engines import make_package
from service.engines import open_engine
engine = open_engine(make_package(Path(sys.argv[1]), flips=(False, True)), "openvino", threads=1)
engine.close()
received = []
signal.signal(signal.SIGINT, lambda number, _: received.append(number))
os.kill(os.getpid(), signal.SIGINT)
assert received == [signal.SIGINT]
"""


def test_signals_are_handled_after_an_engine_is_closed(project: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _SIGNAL_AFTER_CLOSE, str(tmp_path)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
