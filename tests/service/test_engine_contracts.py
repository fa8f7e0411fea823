"""What stands in for CUDA, TensorRT and ONNX Runtime has no name that the real ones lack.

The engines run on the stand-ins in all other tests, so that this holds for the engines as well.
Signatures are compared where the real bindings state them.
"""

import inspect
import json
import re
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
from support import fake_cuda, fake_onnxruntime, fake_tensorrt

TENSORRT_CLASSES = (
    fake_tensorrt.Runtime,
    fake_tensorrt.ICudaEngine,
    fake_tensorrt.IExecutionContext,
)
RTX_CLASSES = (
    fake_tensorrt.IRuntimeConfig,
    fake_tensorrt.IRuntimeCache,
    fake_tensorrt.CudaGraphStrategy,
    fake_tensorrt.DynamicShapesKernelSpecializationStrategy,
)


def names_of(stand_in: type) -> list[str]:
    return [name for name in vars(stand_in) if not name.startswith("_")]


def missing_from(trt: Any, classes: tuple[type, ...]) -> list[str]:
    lacking = [
        f"{stand_in.__name__}.{name}"
        for stand_in in classes
        for name in names_of(stand_in)
        if not hasattr(getattr(trt, stand_in.__name__, None), name)
    ]
    for stand_in, real in (
        (fake_tensorrt.DataType, trt.DataType),
        (fake_tensorrt.ILogger.Severity, trt.ILogger.Severity),
    ):
        lacking += [member.name for member in stand_in if not hasattr(real, member.name)]
    return lacking


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
        ours = list(inspect.signature(getattr(stand_in, name)).parameters)[1:]
        assert len(parameters) == len(ours), (name, parameters, ours)
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
        ours = getattr(fake_onnxruntime.InferenceSession, name)
        theirs = inspect.signature(getattr(real.InferenceSession, name)).parameters
        assert len(theirs) == len(inspect.signature(ours).parameters), name
    bound = inspect.signature(real.IOBinding.bind_input).parameters
    assert list(bound)[1:] == [
        "name",
        *["device_type", "device_id", "element_type", "shape", "buffer_ptr"],
    ]
    assert list(inspect.signature(real.IOBinding.bind_output).parameters) == list(bound)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
@pytest.mark.engines
def test_tensorrt_has_every_name(name: str) -> None:
    trt: ModuleType = pytest.importorskip(name, reason=f"{name} is not installed here")
    classes = TENSORRT_CLASSES + (RTX_CLASSES if name == "tensorrt_rtx" else ())
    assert missing_from(trt, classes) == []


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
