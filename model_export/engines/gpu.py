"""The GPU of this machine, as its driver names it."""

import ctypes
from dataclasses import dataclass

_SUCCESS = 0
_MAJOR, _MINOR = 75, 76
"""Numbers of the compute capability among the driver's device attributes (``cuda.h``)."""


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    name: str
    compute_capability: str
    """Like 8.9."""


def find_gpu(driver: str = "libcuda.so.1") -> Gpu | None:
    """Return the first GPU that this process may use, which TensorRT takes too; None without one.

    Asks the ``driver`` library itself, so that neither torch nor a CUDA toolkit is needed.
    """
    try:
        cuda = ctypes.CDLL(driver)
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    calls = (
        (cuda.cuInit, 0),
        (cuda.cuDeviceGet, ctypes.byref(device), 0),
        (cuda.cuDeviceGetName, name, len(name), device),
        (cuda.cuDeviceGetAttribute, ctypes.byref(major), _MAJOR, device),
        (cuda.cuDeviceGetAttribute, ctypes.byref(minor), _MINOR, device),
    )
    for function, *arguments in calls:
        if function(*arguments) != _SUCCESS:
            return None
    return Gpu(name.value.decode(), f"{major.value}.{minor.value}")
