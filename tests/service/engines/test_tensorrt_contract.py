"""What stands in for CUDA, TensorRT and ONNX Runtime has no name that the real ones lack.

The engines run on the stand-ins in all other tests, so that this holds for the engines as well.
Signatures are compared where the real bindings state them.
"""

import inspect
import json
import operator
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import fake_cuda, fake_onnxruntime, fake_tensorrt


def names_of(*stand_ins: type) -> list[str]:
    """Dotted public names."""
    return [
        f"{stand_in.__name__}.{name}"
        for stand_in in stand_ins
        for name in vars(stand_in)
        if not name.startswith("_")
    ]


TENSORRT_NAMES = [
    *names_of(fake_tensorrt.Runtime, fake_tensorrt.ICudaEngine, fake_tensorrt.IExecutionContext),
    *(f"DataType.{member.name}" for member in fake_tensorrt.DataType),
    *(f"ILogger.Severity.{member.name}" for member in fake_tensorrt.ILogger.Severity),
]
RTX_NAMES = names_of(
    fake_tensorrt.IRuntimeConfig,
    fake_tensorrt.IRuntimeCache,
    fake_tensorrt.CudaGraphStrategy,
    fake_tensorrt.DynamicShapesKernelSpecializationStrategy,
)


def test_cuda_has_every_name_and_as_many_parameters() -> None:
    real = pytest.importorskip("cuda.bindings.runtime")
    stand_in = fake_cuda.FakeCudaRuntime
    functions = [name for name in vars(stand_in) if name.startswith("cuda")]
    assert len(functions) > 20
    for name in functions:
        assert hasattr(real, name), name
        if not inspect.isfunction(getattr(stand_in, name)):
            continue
        stated = re.match(rf"{name}\((.*?)\)", inspect.getdoc(getattr(real, name)) or "")
        assert stated is not None, name
        parameters = [part for part in stated.group(1).split(",") if part.strip()]
        local = list(inspect.signature(getattr(stand_in, name)).parameters)[1:]
        assert len(parameters) == len(local), (name, parameters, local)
    for kind in (fake_cuda.cudaError_t, fake_cuda.cudaMemcpyKind, fake_cuda.cudaStreamCaptureMode):
        for member in kind:
            assert int(getattr(getattr(real, kind.__name__), member.name)) == member
    for flag in ("cudaStreamNonBlocking", "cudaEventBlockingSync", "cudaEventDisableTiming"):
        assert getattr(real, flag) == getattr(stand_in, flag)


def test_cuda_handles_have_numbers_and_errors_have_texts() -> None:
    real = pytest.importorskip("cuda.bindings.runtime")
    assert int(real.cudaStream_t(5)) == 5
    error, text = real.cudaGetErrorString(real.cudaError_t.cudaErrorIllegalAddress)
    assert int(error) == 0
    assert b"illegal memory access" in text


def test_onnxruntime_has_every_name() -> None:
    import onnxruntime as real

    for stand_in in (fake_onnxruntime.RunOptions, fake_onnxruntime.IOBinding):
        for name in ("add_run_config_entry", "bind_input", "bind_output"):
            if name in vars(stand_in):
                assert hasattr(getattr(real, stand_in.__name__), name), name
    for name in ("get_providers", "io_binding", "run_with_iobinding"):
        local = getattr(fake_onnxruntime.InferenceSession, name)
        upstream = inspect.signature(getattr(real.InferenceSession, name)).parameters
        assert len(upstream) == len(inspect.signature(local).parameters), name
    bound = inspect.signature(real.IOBinding.bind_input).parameters
    assert list(bound)[1:] == [
        "name",
        *["device_type", "device_id", "element_type", "shape", "buffer_ptr"],
    ]
    assert list(inspect.signature(real.IOBinding.bind_output).parameters) == list(bound)


MISSING = """
import json, operator, sys
from pathlib import Path
from support.tensorrt_on_cpu import load
trt, _ = load(Path(sys.argv[1]))
def is_missing(name):
    try:
        operator.attrgetter(name)(trt)
    except AttributeError:
        return True
Path(sys.argv[2]).write_text(json.dumps([trt.__version__, *filter(is_missing, sys.argv[3:])]))
"""


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_tensorrt_has_every_name(version: str, project: Path, tmp_path: Path) -> None:
    folder = Path(sys.prefix, "tensorrt", version)
    if not (folder / "installed").exists():
        pytest.skip(f"no bindings of TensorRT {version}: run `make tensorrt-bindings`")
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to stand in for TensorRT's libraries with")
    environment = {**os.environ, "PYTHONPATH": f"{project}{os.pathsep}{project / 'tests'}"}
    command = [sys.executable, "-c", MISSING, folder, tmp_path / "missing.json", *TENSORRT_NAMES]
    subprocess.run(command, env=environment, check=True, timeout=120)
    assert json.loads((tmp_path / "missing.json").read_text()) == [version]


@pytest.mark.engines
def test_tensorrt_rtx_has_every_name() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed here")
    for name in (*TENSORRT_NAMES, *RTX_NAMES):
        operator.attrgetter(name)(trt)


LOGGING = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import tensorrt_rtx as trt
from service.engines.tensorrt import _log_of
log = _log_of(trt)
engine = trt.Runtime(log.logger).deserialize_cuda_engine(b"no plan")
print(json.dumps([engine is None, log.said()]))
"""


@pytest.mark.engines
def test_the_real_library_refuses_what_is_no_engine_and_says_so() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed here")
    # In a process of its own: without a GPU the library may end it.
    run = subprocess.run(
        [sys.executable, "-c", LOGGING, json.dumps(sys.path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    refused, said = json.loads(run.stdout.splitlines()[-1])
    assert refused
    assert said.startswith(" (")
