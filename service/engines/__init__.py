"""Engines: a loaded artifact that turns a batch of inputs into named outputs."""

import logging
from collections.abc import Callable, Mapping

from model_package import ModelPackage
from service.engines.engine import Engine, EngineOptions, Images
from service.engines.errors import EngineBrokenError, EngineUnavailableError
from service.engines.onnxruntime import OnnxRuntimeEngine, open_cuda_engine
from service.engines.tensorrt import TENSORRT, TENSORRT_RTX, open_tensorrt_engine

__all__ = [
    "BACKENDS",
    "Engine",
    "EngineBrokenError",
    "EngineOptions",
    "EngineUnavailableError",
    "Images",
    "open_engine",
]

_log = logging.getLogger(__name__)

BACKENDS: Mapping[str, Callable[[ModelPackage, EngineOptions], Engine]] = {
    "tensorrt": lambda package, options: open_tensorrt_engine(package, options, TENSORRT),
    "tensorrt-rtx": lambda package, options: open_tensorrt_engine(package, options, TENSORRT_RTX),
    "onnxruntime-cuda": open_cuda_engine,
    "onnxruntime-cpu": OnnxRuntimeEngine,
}
"""Every backend by name, fastest first: ``auto`` takes the first that this machine can run."""


def open_engine(
    package: ModelPackage,
    backend: str,
    threads: int,
    concurrency: int = 1,
    max_batch_size: int = 8,
) -> Engine:
    """Open ``package`` with the named backend, or with the first that works for ``auto``.

    For the other arguments see :class:`EngineOptions`. Raises :class:`EngineUnavailableError`; a
    backend asked for by name never falls back.
    """
    options = EngineOptions(threads, concurrency, max_batch_size)
    if backend != "auto":
        return BACKENDS[backend](package, options)
    refusals = []
    for name, open_backend in BACKENDS.items():
        try:
            engine = open_backend(package, options)
        except EngineUnavailableError as error:
            _log.info("%s: not %s: %s", package.manifest.name, name, error)
            refusals.append(f"{name}: {error}")
        else:
            _log.info("%s: runs on %s", package.manifest.name, engine.description)
            return engine
    raise EngineUnavailableError(
        f"no backend can run {package.manifest.name}: {'; '.join(refusals)}"
    )
