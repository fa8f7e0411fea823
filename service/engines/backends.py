"""The available backends and the choice among them."""

import logging
from collections.abc import Callable, Mapping

from model_package import ModelPackage
from model_package.tensorrt_libraries import TENSORRT, TENSORRT_RTX
from service.engines.engine import Engine, EngineOptions
from service.engines.errors import EngineUnavailableError
from service.engines.onnxruntime import OnnxRuntimeEngine, open_cuda_engine
from service.engines.tensorrt import open_tensorrt_engine

_log = logging.getLogger(__name__)

BACKENDS: Mapping[str, Callable[[ModelPackage, EngineOptions], Engine]] = {
    "tensorrt": lambda package, options: open_tensorrt_engine(package, options, TENSORRT),
    "tensorrt-rtx": lambda package, options: open_tensorrt_engine(package, options, TENSORRT_RTX),
    "onnxruntime-cuda": open_cuda_engine,
    "onnxruntime-cpu": OnnxRuntimeEngine,
}
"""Function that opens a package, by the name of the backend.

Ordered from fastest to slowest: ``auto`` uses the first that this machine can run.
"""


def open_engine(
    package: ModelPackage,
    backend: str,
    threads: int,
    concurrency: int = 1,
    max_batch_size: int = 8,
) -> Engine:
    """Load a model package with a backend.

    ``backend`` is a key of :data:`BACKENDS`, or ``auto`` for the first backend that works here. A
    backend requested by name has no fallback. The other arguments are the fields of
    :class:`~service.engines.engine.EngineOptions`.

    Raises :class:`~service.engines.errors.EngineUnavailableError` if the backend, or with ``auto``
    every backend, cannot run the package on this machine, and
    :class:`~service.engines.errors.EngineBrokenError` if opening leaves the GPU unusable for this
    process; ``auto`` then tries no other backend.
    """
    options = EngineOptions(threads, concurrency, max_batch_size)
    if backend != "auto":
        return BACKENDS[backend](package, options)
    name, reasons = package.manifest.name, []
    for candidate, open_backend in BACKENDS.items():
        try:
            engine = open_backend(package, options)
        except EngineUnavailableError as error:
            _log.info("%s: backend %s is unavailable: %s", name, candidate, error)
            reasons.append(f"{candidate}: {error}")
        else:
            _log.info("%s: using %s", name, engine.description)
            return engine
    raise EngineUnavailableError(f"no backend can run {name}: {'; '.join(reasons)}")
