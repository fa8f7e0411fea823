"""The GPU that the NVIDIA driver reports."""

import ctypes
import subprocess
from pathlib import Path

import pytest

from model_package.gpu import Gpu, find_gpu

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
def test_reads_name_and_compute_capability_from_the_driver(
    tmp_path: Path, result: int, gpu: Gpu | None
) -> None:
    source, library = tmp_path / "driver.c", tmp_path / "libcuda.so.1"
    source.write_text(DRIVER)
    command = ["cc", "-shared", "-fPIC", f"-DRESULT={result}", "-o", library, source]
    try:
        subprocess.run(command, check=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("no C compiler to compile a fake driver")
    assert find_gpu(str(library)) == gpu


def test_returns_none_without_a_driver(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="absent"):
        ctypes.CDLL(str(tmp_path / "absent.so"))
    assert find_gpu(str(tmp_path / "absent.so")) is None
