"""The libraries that build engines: what they are called, how they are had and what they target."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

from model_export.engines.errors import EngineLibraryError, EngineRequestError


@dataclass(frozen=True)
class Library:
    """One library; its API is that of ``tensorrt``, apart from what is said here."""

    backend: Literal["tensorrt", "tensorrt_rtx"]
    """In ``model.json``; also the name of the Python module."""
    title: str
    oldest: tuple[int, int]
    install: str
    builds_without_gpu: bool
    """Whether it can build for any GPU that it knows; else for the one that is there."""
    has_deform_conv: bool
    has_plugins: bool
    """Whether plugins written in Python may be registered."""
    has_timing_cache: bool


LIBRARIES: Mapping[str, Library] = {
    "tensorrt": Library(
        backend="tensorrt",
        title="TensorRT",
        oldest=(10, 9),
        # What PyPI has under these names holds no libraries: they come from NVIDIA's own index.
        install="pip install 'centernet-serving[build,tensorrt]' "
        "--extra-index-url https://pypi.nvidia.com",
        builds_without_gpu=False,
        has_deform_conv=True,
        has_plugins=True,
        has_timing_cache=True,
    ),
    "tensorrt-rtx": Library(
        backend="tensorrt_rtx",
        title="TensorRT-RTX",
        oldest=(1, 7),
        install="pip install 'centernet-serving[build,tensorrt-rtx]'",
        builds_without_gpu=True,
        has_deform_conv=False,
        has_plugins=False,
        has_timing_cache=False,
    ),
}
"""By the name on the command line."""


def ways_to_install() -> str:
    """One command per library, each with all that building needs."""
    return "; or ".join(f"{entry.title}: {entry.install}" for entry in LIBRARIES.values())


def choose_library(name: str | None) -> Library:
    """Take the library of that name; without a name the one that is installed.

    Raises :class:`EngineRequestError` for another name or where both are installed, and
    :class:`EngineLibraryError` where none is.
    """
    if name is not None:
        if name not in LIBRARIES:
            raise EngineRequestError(
                f"there is no backend {name!r} to build for. Accepted: {', '.join(LIBRARIES)}."
            )
        return LIBRARIES[name]
    installed = {key: entry for key, entry in LIBRARIES.items() if find_spec(entry.backend)}
    if len(installed) > 1:
        raise EngineRequestError(
            f"{' and '.join(installed)} are both installed. Choose one with --backend."
        )
    if not installed:
        raise EngineLibraryError(
            f"no library that builds engines is installed. {ways_to_install()}."
        )
    return next(iter(installed.values()))


def import_library(library: Library) -> Any:
    """Import the library's module. Raises :class:`EngineLibraryError` where it does not work."""
    try:
        module = import_module(library.backend)
    # Libraries that are missing or too new for the machine are told of as any of these.
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineLibraryError(
            f"{library.title} cannot be imported ({error}). Install it with: {library.install}"
        ) from error
    version = getattr(module, "__version__", None)
    if version is None:
        raise EngineLibraryError(
            f"the module {library.backend} is not {library.title}: it has no version. "
            f"Install it with: {library.install}"
        )
    found = tuple(int(part) for part in version.split(".")[:2])
    if found < library.oldest:
        oldest = ".".join(map(str, library.oldest))
        raise EngineLibraryError(
            f"{library.title} is {version}, but at least {oldest} is needed. "
            f"Install it with: {library.install}"
        )
    return module


def find_target(trt: Any, compute_capability: str) -> Any:
    """TensorRT-RTX's own name of ``compute_capability`` (like 8.9), if it can build for that.

    Raises :class:`EngineRequestError` with those that it can build for.
    """
    known = {
        f"{name[2:-1]}.{name[-1]}": target
        for name, target in trt.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    if compute_capability not in known:
        raise EngineRequestError(
            f"TensorRT-RTX {trt.__version__} does not build for compute capability "
            f"{compute_capability}. Accepted: {', '.join(known)}. For other GPUs build with "
            "--backend tensorrt on a machine that has one, or serve with ONNX Runtime."
        )
    return known[compute_capability]
