"""Selection of the library that builds engines, and of its build target."""

from importlib.util import find_spec
from typing import Any

from model_export.engines.errors import EngineLibraryError, EngineRequestError
from model_package.tensorrt_libraries import (
    TENSORRT_LIBRARIES,
    TensorRTLibrary,
    TensorRTLibraryError,
    load_tensorrt_library,
)

_EXTRA = "build"
"""Extra of this project that installs the other packages that a build needs."""


def install_commands() -> str:
    """Return the ``pip`` command of each library, with everything else that a build needs."""
    return "; or ".join(
        f"{library.title}: {library.install_command(_EXTRA)}"
        for library in TENSORRT_LIBRARIES.values()
    )


def select_library(name: str | None) -> TensorRTLibrary:
    """Return the library of the given name, or the one that is installed if the name is None.

    Raises :class:`EngineRequestError` if the name is unknown or both libraries are installed, and
    :class:`EngineLibraryError` if none is.
    """
    if name is not None:
        if name not in TENSORRT_LIBRARIES:
            raise EngineRequestError(
                f"there is no backend {name!r} to build for. "
                f"Accepted: {', '.join(TENSORRT_LIBRARIES)}."
            )
        return TENSORRT_LIBRARIES[name]
    installed = [
        library for library in TENSORRT_LIBRARIES.values() if find_spec(library.backend) is not None
    ]
    if len(installed) > 1:
        names = " and ".join(library.name for library in installed)
        raise EngineRequestError(f"{names} are both installed. Choose one with --backend.")
    if not installed:
        raise EngineLibraryError(
            f"no library that builds engines is installed. {install_commands()}."
        )
    return installed[0]


def import_library(library: TensorRTLibrary) -> Any:
    """Import the library's module. Raises :class:`EngineLibraryError` if that fails."""
    try:
        return load_tensorrt_library(library, _EXTRA)
    except TensorRTLibraryError as error:
        raise EngineLibraryError(str(error)) from error


def find_target(trt: Any, compute_capability: str) -> Any:
    """Return the ``ComputeCapability`` of TensorRT-RTX for a version such as ``8.9``.

    Raises :class:`EngineRequestError` with the supported versions if it is not among them.
    """
    targets = {
        f"{name[2:-1]}.{name[-1]}": target
        for name, target in trt.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    if compute_capability not in targets:
        raise EngineRequestError(
            f"TensorRT-RTX {trt.__version__} does not build for compute capability "
            f"{compute_capability}. Accepted: {', '.join(targets)}. For other GPUs build with "
            "--backend tensorrt on a machine that has one, or serve with ONNX Runtime."
        )
    return targets[compute_capability]
