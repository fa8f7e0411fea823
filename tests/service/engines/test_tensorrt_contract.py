"""The fakes of CUDA, TensorRT and ONNX Runtime have no name that the real libraries lack.

All other tests run the engines on the fakes, so the engines use no other names either. Signatures
are compared where the real bindings document them.
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
from typing import Any

import pytest
from support import fake_cuda, fake_onnxruntime, fake_tensorrt


def names_of(*fakes: type) -> list[str]:
    """Return the dotted public names of the classes."""
    return [
        f"{fake.__name__}.{name}"
        for fake in fakes
        for name in vars(fake)
        if not name.startswith("_")
    ]


TENSORRT_NAMES = [
    "init_libnvinfer_plugins",
    *names_of(fake_tensorrt.Runtime, fake_tensorrt.ICudaEngine, fake_tensorrt.IExecutionContext),
    *(f"DataType.{member.name}" for member in fake_tensorrt.DataType),
    *(
        f"ExecutionContextAllocationStrategy.{member.name}"
        for member in fake_tensorrt.ExecutionContextAllocationStrategy
    ),
    *(f"ILogger.Severity.{member.name}" for member in fake_tensorrt.ILogger.Severity),
]
RTX_NAMES = names_of(
    fake_tensorrt.IRuntimeConfig,
    fake_tensorrt.IRuntimeCache,
    fake_tensorrt.CudaGraphStrategy,
    fake_tensorrt.DynamicShapesKernelSpecializationStrategy,
)


def test_cuda_has_every_name_with_as_many_parameters() -> None:
    real = pytest.importorskip("cuda.bindings.runtime")
    fake = fake_cuda.FakeCudaRuntime
    functions = [name for name in vars(fake) if name.startswith("cuda")]
    assert len(functions) > 20
    for name in functions:
        assert hasattr(real, name), name
        if not inspect.isfunction(getattr(fake, name)):
            continue
        documented = re.match(rf"{name}\((.*?)\)", inspect.getdoc(getattr(real, name)) or "")
        assert documented is not None, name
        parameters = [part for part in documented.group(1).split(",") if part.strip()]
        local = list(inspect.signature(getattr(fake, name)).parameters)[1:]
        assert len(parameters) == len(local), (name, parameters, local)
    for kind in (fake_cuda.cudaError_t, fake_cuda.cudaMemcpyKind, fake_cuda.cudaStreamCaptureMode):
        for member in kind:
            assert int(getattr(getattr(real, kind.__name__), member.name)) == member
    for flag in ("cudaStreamNonBlocking", "cudaEventBlockingSync", "cudaEventDisableTiming"):
        assert getattr(real, flag) == getattr(fake, flag)


def test_cuda_handles_convert_to_int_and_errors_have_descriptions() -> None:
    real = pytest.importorskip("cuda.bindings.runtime")
    assert int(real.cudaStream_t(5)) == 5
    error, text = real.cudaGetErrorString(real.cudaError_t.cudaErrorIllegalAddress)
    assert int(error) == 0
    assert b"illegal memory access" in text


def test_onnxruntime_has_every_name() -> None:
    import onnxruntime as real

    for fake in (fake_onnxruntime.RunOptions, fake_onnxruntime.IOBinding):
        for name in ("add_run_config_entry", "bind_input", "bind_output"):
            if name in vars(fake):
                assert hasattr(getattr(real, fake.__name__), name), name
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


@pytest.fixture(params=["10.16.1.11", "11.4.0.106"])
def bindings(request: pytest.FixtureRequest) -> Path:
    """Return the folder of TensorRT's bindings in one version; its name is the version."""
    folder = Path(sys.prefix, "tensorrt", request.param)
    if not (folder / "installed").exists():
        pytest.skip(f"no bindings of TensorRT {request.param}: run `make tensorrt-bindings`")
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to compile stubs of TensorRT's libraries")
    return folder


def run_with_bindings(program: str, bindings: Path, output: Path, *arguments: str) -> Any:
    """Run a program with the folder, an output file and ``arguments``; return what it wrote.

    In a process of its own, because two versions cannot be imported into one.
    """
    project = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{project}{os.pathsep}{project / 'tests'}"}
    command = [sys.executable, "-c", program, bindings, output, *arguments]
    subprocess.run(command, env=environment, check=True, timeout=120)
    return json.loads(output.read_text())


def test_tensorrt_has_every_name(bindings: Path, tmp_path: Path) -> None:
    missing = run_with_bindings(MISSING, bindings, tmp_path / "missing.json", *TENSORRT_NAMES)
    assert missing == [bindings.name]


REGISTER = """
import json, sys
from pathlib import Path
from support.tensorrt_on_cpu import load
trt, _ = load(Path(sys.argv[1]))
from model_export.engines.compile_engine import _make_logger
from model_package.tensorrt_libraries import TENSORRT, register_plugins
from service.engines.tensorrt import _error_log
messages = []
register_plugins(TENSORRT, trt, _make_logger(trt, messages))
log = _error_log(trt)
register_plugins(TENSORRT, trt, log.logger)
Path(sys.argv[2]).write_text(json.dumps([messages, log.pop_errors()]))
"""


def test_the_real_bindings_register_the_plugins(bindings: Path, tmp_path: Path) -> None:
    """The plugin library, a stub, gets the loggers of a build and of the service.

    It writes a message to them.
    """
    built, served = run_with_bindings(REGISTER, bindings, tmp_path / "log.json")
    assert built == ["plugins registered in ''"]
    assert served == " (plugins registered in '')"


@pytest.mark.engines
def test_tensorrt_rtx_has_every_name() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed here")
    for name in (*TENSORRT_NAMES, *RTX_NAMES):
        operator.attrgetter(name)(trt)


LOGGING = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import tensorrt_rtx as trt
from service.engines.tensorrt import _error_log
log = _error_log(trt)
engine = trt.Runtime(log.logger).deserialize_cuda_engine(b"no plan")
print(json.dumps([engine is None, log.pop_errors()]))
"""


@pytest.mark.engines
def test_the_real_library_rejects_an_invalid_engine_with_a_message() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed here")
    # In a process of its own: without a GPU the library may abort it.
    run = subprocess.run(
        [sys.executable, "-c", LOGGING, json.dumps(sys.path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    is_rejected, errors = json.loads(run.stdout.splitlines()[-1])
    assert is_rejected
    assert errors.startswith(" (")
