"""Description of the machine on which the measurements are made."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from model_package.gpu import find_gpu

PACKAGES = (
    "torch",
    "cupy-cuda13x",
    "cupy-cuda12x",
    "cuda-bindings",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt_cu13",
    "tensorrt_rtx_cu13",
)


def describe() -> dict[str, Any]:
    """Return the GPU (None without one), driver, processor and versions of installed packages."""
    import torch

    gpu = find_gpu() if torch.cuda.is_available() else None
    return {
        "gpu": gpu
        and {
            "name": gpu.name,
            "compute_capability": gpu.compute_capability,
            "memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1),
        },
        "driver": _driver(),
        "cuda_of_torch": torch.version.cuda,
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES if _version(name)},
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.splitlines()[0].strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
