"""Corner pooling plugins, the driver's answers, and progress."""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.builds import FAKES, tiny_graph

from model_export.engines import compilation
from model_export.engines.compilation import Compilation, compile_engine
from model_export.engines.gpu import Gpu, find_gpu
from model_export.engines.libraries import LIBRARIES
from model_export.engines.profiles import Profile
from model_export.engines.progress import PhaseProgress

SHAPE = (1, 8, 8, 3)


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("backend", "domain", "registered"),
    [
        ("tensorrt", "centernet", 1),
        ("tensorrt", "", 0),
        ("tensorrt-rtx", "centernet", 0),  # a Python plugin would end the process
    ],
)
def test_plugins_are_registered_where_they_are_needed_and_possible(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    domain: str,
    registered: int,
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(
        compilation, "register_corner_pooling", lambda trt: calls.append(trt.__name__)
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_graph(operator="corner_pool_top", domain=domain))
    compile_engine(
        Compilation(
            library=LIBRARIES[backend],
            onnx_file=path,
            engine_file=tmp_path / "engine",
            profile=Profile(SHAPE, SHAPE, SHAPE),
            compute_capability="8.9",
            tf32=False,
            timing_cache=None,
        ),
        lambda *_: None,
    )
    assert calls == ["tensorrt"] * registered


CALLS = """
import inspect, json, sys
from pathlib import Path
from support.tensorrt_on_cpu import load
real, _ = load(Path(sys.argv[1]))
sys.path.insert(0, sys.argv[2])
del sys.modules["tensorrt"]
import tensorrt, tensorrt_rtx
missing, checked = [], 0
for fake in (tensorrt, tensorrt_rtx):
    for name, entry in inspect.getmembers(fake, inspect.isclass):
        if entry.__module__ == fake.__name__ and name != "ComputeCapability":
            for call in vars(entry):
                checked += call[0] != "_"
                if call[0] != "_" and not hasattr(getattr(real, name, None), call):
                    missing.append(f"{name}.{call}")
print(json.dumps([real.__version__, checked, sorted(missing)]))
"""


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_every_call_exists_in_full_tensorrt(project: Path, version: str) -> None:
    """What the fake libraries have is what the builder calls: a call they lack fails its tests."""
    folder = Path(sys.prefix, "tensorrt", version)
    if not (folder / "installed").exists():
        pytest.skip(f"no bindings of TensorRT {version}: run `make tensorrt-bindings`")
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to stand in for TensorRT's libraries with")
    environment = os.environ | {"PYTHONPATH": f"{project}{os.pathsep}{project / 'tests'}"}
    command = [sys.executable, "-W", "ignore", "-c", CALLS, folder, FAKES]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    found, checked, missing = json.loads(answer.stdout.splitlines()[-1])
    assert found == version
    assert checked > 20
    # Only for TensorRT-RTX does the builder call these.
    rtx_only = ["num_compute_capabilities", "set_compute_capability"]
    assert missing == [f"IBuilderConfig.{call}" for call in rtx_only]


def test_progress_is_the_share_of_nested_steps() -> None:
    told: list[tuple[float, str]] = []
    phases = PhaseProgress(lambda share, name: told.append((round(share, 3), name)))
    phases.start("whole", None, 4)
    phases.complete("whole", 0)
    phases.start("part", "whole", 2)
    phases.complete("part", 0)
    phases.start("detail", "part", 2)
    phases.complete("detail", 0)
    phases.finish("detail")
    phases.complete("part", 1)
    phases.finish("part")
    phases.complete("whole", 1)  # says nothing that is not known
    phases.start("part", "whole", 1000)
    phases.complete("part", 0)  # too little to tell
    phases.complete("unheard of", 3)
    phases.finish("unheard of")
    phases.complete("whole", 3)
    assert told == [
        (0.25, "whole"),
        (0.375, "part"),
        (0.438, "detail"),
        (0.5, "part"),
        (1.0, "whole"),
    ]


DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return RESULT; }
int cuDeviceGet(int *device, int number) { *device = 7 + number; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
    strncpy(name, device == 7 ? "NVIDIA L4" : "?", size); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 9 : -1; return 0; }
"""


@pytest.mark.parametrize(("result", "gpu"), [(0, Gpu("NVIDIA L4", "8.9")), (100, None)])
def test_the_driver_names_the_gpu(tmp_path: Path, result: int, gpu: Gpu | None) -> None:
    source, library = tmp_path / "driver.c", tmp_path / "libcuda.so.1"
    source.write_text(DRIVER)
    command = ["cc", "-shared", "-fPIC", f"-DRESULT={result}", "-o", library, source]
    try:
        subprocess.run(command, check=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("there is no C compiler to make a driver with")
    assert find_gpu(str(library)) == gpu


def test_without_a_driver_there_is_no_gpu(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="absent"):
        ctypes.CDLL(str(tmp_path / "absent.so"))
    assert find_gpu(str(tmp_path / "absent.so")) is None
