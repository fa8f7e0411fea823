"""Name and compute capability of the GPU, read from the NVIDIA driver.

An engine artifact names the GPU that it requires; both the exporter, which builds engines, and
the service, which loads them, identify the GPU with this function.
"""

import ctypes
from dataclasses import dataclass

MIN_DRIVER = "580"
"""Oldest NVIDIA driver for CUDA 13, which the libraries in the extras of this project use."""

_CUDA_SUCCESS = 0
# CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR in cuda.h.
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True)
class Gpu:
    """One CUDA device."""

    name: str
    """As the driver reports it, for example ``NVIDIA L4``."""
    compute_capability: str
    """Major and minor version, for example ``8.9``."""


def find_gpu(driver: str = "libcuda.so.1") -> Gpu | None:
    """Return CUDA device 0 of this process, or None without a GPU or without a driver.

    ``CUDA_VISIBLE_DEVICES`` applies, so this is the device that TensorRT and ONNX Runtime use by
    default. Calls the driver library directly: neither torch nor a CUDA toolkit is needed.
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
        (cuda.cuDeviceGetAttribute, ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device),
        (cuda.cuDeviceGetAttribute, ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device),
    )
    for function, *arguments in calls:
        if function(*arguments) != _CUDA_SUCCESS:
            return None
    return Gpu(name.value.decode(), f"{major.value}.{minor.value}")
