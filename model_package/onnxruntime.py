"""Import of ONNX Runtime, which exporter and service share."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
"""Distributions that the extras of this project install, both as the module ``onnxruntime``."""


class OnnxRuntimeConflictError(ImportError):
    """Several distributions of ONNX Runtime are installed; the message says what to do."""


def load_onnxruntime() -> Any:
    """Import ``onnxruntime``.

    Raises :class:`OnnxRuntimeConflictError` if both distributions are installed: each overwrites
    files of the other, so CUDA can be missing, or libraries and Python files of two versions mixed.
    Raises :class:`ModuleNotFoundError` if none is installed.
    """
    installed = {
        name: number for name in _DISTRIBUTIONS if (number := _version_of(name)) is not None
    }
    if len(installed) > 1:
        found = " and ".join(f"{name} {number}" for name, number in installed.items())
        raise OnnxRuntimeConflictError(
            f"{found} are both installed, and each has overwritten files of the other; they are "
            "the extras 'serve' or 'export', and 'gpu'. Keep one: "
            "pip uninstall --yes onnxruntime onnxruntime-gpu, then "
            f"pip install onnxruntime=={installed['onnxruntime']}, or for a GPU "
            f"pip install onnxruntime-gpu=={installed['onnxruntime-gpu']}, which also runs on the "
            "CPU and exports."
        )
    return import_module("onnxruntime")


def _version_of(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
