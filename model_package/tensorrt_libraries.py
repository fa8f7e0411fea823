"""TensorRT and TensorRT-RTX: how the two libraries differ, and importing them.

Their Python APIs are the same except where :class:`TensorRTLibrary` says otherwise. The exporter
builds engines with them and the service runs engines; neither library is a dependency of this
package.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal


class TensorRTLibraryError(Exception):
    """The library is not installed, cannot be imported or is too old; the message says which."""


@dataclass(frozen=True)
class TensorRTLibrary:
    """One of the two libraries and what it supports."""

    title: str
    """Product name, for messages."""
    name: Literal["tensorrt", "tensorrt-rtx"]
    """Value of ``--backend`` in both programs, and name of the extra that installs the library."""
    backend: Literal["tensorrt", "tensorrt_rtx"]
    """Value of ``backend`` in ``model.json``, and name of the Python module."""
    min_version: tuple[int, int]
    builds_without_gpu: bool
    """Whether it builds for any compute capability that it supports. Otherwise it builds only for
    the GPU of the machine."""
    compiles_at_run_time: bool
    """Whether it compiles kernels for the GPU at their first use, keeps them in a runtime cache
    and captures CUDA graphs itself."""
    has_deform_conv: bool
    """Whether its parser supports the ONNX operator ``DeformConv``."""
    has_python_plugins: bool
    """Whether plugins written in Python can be registered."""
    has_timing_cache: bool
    has_plugin_library: bool
    """Whether operators such as ``DeformConv`` are plugins of a library of its own."""
    pip_options: str = ""

    def install_command(self, extra: str) -> str:
        """Return the ``pip`` command that installs the library together with another extra."""
        return f"pip install 'centernet-serving[{extra},{self.name}]'{self.pip_options}"


TENSORRT = TensorRTLibrary(
    title="TensorRT",
    name="tensorrt",
    backend="tensorrt",
    min_version=(10, 9),
    builds_without_gpu=False,
    compiles_at_run_time=False,
    has_deform_conv=True,
    has_python_plugins=True,
    has_timing_cache=True,
    has_plugin_library=True,
    # The packages of these names on PyPI do not contain the libraries; NVIDIA's own index does.
    pip_options=" --extra-index-url https://pypi.nvidia.com",
)
TENSORRT_RTX = TensorRTLibrary(
    title="TensorRT-RTX",
    name="tensorrt-rtx",
    backend="tensorrt_rtx",
    min_version=(1, 7),
    builds_without_gpu=True,
    compiles_at_run_time=True,
    has_deform_conv=False,
    has_python_plugins=False,
    has_timing_cache=False,
    has_plugin_library=False,
)
TENSORRT_LIBRARIES: Mapping[str, TensorRTLibrary] = {
    library.name: library for library in (TENSORRT, TENSORRT_RTX)
}
"""Both libraries by :attr:`TensorRTLibrary.name`."""


def load_tensorrt_library(library: TensorRTLibrary, extra: str) -> Any:
    """Import the library's module and check its version.

    ``extra`` is the extra of this project that the caller needs besides the library; it only
    appears in messages. Raises :class:`TensorRTLibraryError` with the command that installs both.
    """
    install = f"Install it with: {library.install_command(extra)}"
    try:
        module = import_module(library.backend)
    except ModuleNotFoundError as error:
        raise TensorRTLibraryError(
            f"{library.title} is not installed ({error}). {install}"
        ) from error
    # Shared libraries that are missing or do not fit the machine raise ImportError, OSError,
    # RuntimeError or an exception class of the bindings.
    except Exception as error:
        raise TensorRTLibraryError(
            f"{library.title} is installed but cannot be imported ({error}). {install}"
        ) from error
    version = getattr(module, "__version__", None)
    if version is None:  # the directory that an incomplete uninstallation leaves behind
        raise TensorRTLibraryError(
            f"the module {library.backend} is not {library.title}: it has no version. {install}"
        )
    if tuple(int(part) for part in version.split(".")[:2]) < library.min_version:
        min_version = ".".join(map(str, library.min_version))
        raise TensorRTLibraryError(
            f"{library.title} {version} is installed, but at least {min_version} is needed. "
            f"{install}"
        )
    return module


def register_plugins(library: TensorRTLibrary, module: Any, logger: Any) -> None:
    """Register the plugins of the library, before a model is parsed or an engine is loaded.

    The parser converts ``DeformConv`` to the plugin ``ModulatedDeformConv2d``, which neither the
    parser nor an engine finds otherwise. ``logger`` must outlive the registry.
    """
    if library.has_plugin_library:
        module.init_libnvinfer_plugins(logger, "")
