"""Run the corner pooling kernels on the CPU, compiled from their CUDA source."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_export.engines.corner_pooling_kernels import Launch

KERNELS = Path(__file__).parents[2] / "model_export" / "engines" / "corner_pooling.cu"
_GUARD = 64
"""Bytes around each array: detects every write there, and reads that change the result."""


class _Call(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.c_void_p),
        *((name, ctypes.c_int) for name in ("inputs", "blocks", "planes", "height", "width")),
        *((name, ctypes.c_void_p) for name in ("a", "b", "y")),
    )


def compiler() -> str | None:
    """Return the path of a C++ compiler for the emulation, if there is one."""
    return shutil.which("g++")


class Emulation:
    """The kernels, compiled as a shared library in ``directory``."""

    def __init__(self, directory: Path) -> None:
        library = directory / "kernels.so"
        source = Path(__file__).with_suffix(".cpp")
        options = ["-std=c++20", "-O1", "-fno-strict-aliasing", "-shared", "-fPIC", "-w"]
        command = [str(compiler()), *options, f'-DKERNELS="{KERNELS}"']
        subprocess.run([*command, "-o", str(library), str(source)], check=True)
        self._library = ctypes.CDLL(str(library))

    def run(self, kernel: str, launch: Launch, *inputs: NDArray) -> NDArray:
        """Return the output of ``kernel`` for the bits of its (N, C, H, W) maps, as unsigned."""
        guarded = [_guarded(values) for values in inputs]
        output = _guarded(np.zeros_like(inputs[0]))
        pointers = [values.ctypes.data + _GUARD for values in (guarded[0], guarded[-1], output)]
        entry = ctypes.cast(getattr(self._library, kernel), ctypes.c_void_p)
        call = _Call(entry, len(inputs), launch.blocks, *launch.arguments, *pointers)
        if self._library.launch(ctypes.byref(call), *launch.block_size):
            raise RuntimeError(
                f"{kernel} {launch}: threads wait at a barrier that others never reach"
            )
        if not (_is_guard(output[:_GUARD]) and _is_guard(output[-_GUARD:])):
            raise RuntimeError(f"{kernel} {launch}: wrote out of bounds of its output")
        return output[_GUARD:-_GUARD].view(inputs[0].dtype).reshape(inputs[0].shape)


def _guarded(values: NDArray) -> NDArray[np.uint8]:
    """Return the bytes of ``values`` between guards, which are NaN in every format."""
    guard = np.full(_GUARD, 0xFF, np.uint8)
    bytes_ = np.concatenate([guard, np.ascontiguousarray(values).view(np.uint8).ravel(), guard])
    # NumPy aligns arrays to 16 bytes, and the size of the guard preserves that.
    assert bytes_.ctypes.data % 16 == 0
    return bytes_


def _is_guard(bytes_: NDArray[np.uint8]) -> bool:
    return bool((bytes_ == 0xFF).all())
