"""Engines: a loaded artifact that turns a batch of inputs into named outputs."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from model_package import ModelPackage
from service.engines.errors import EngineUnavailableError
from service.engines.onnxruntime import OnnxRuntimeEngine

__all__ = ["BACKENDS", "Engine", "EngineUnavailableError", "open_engine"]

_log = logging.getLogger(__name__)


class Engine(Protocol):
    """One loaded model."""

    description: str
    concurrency: int
    """Threads that may be inside :meth:`run` at a time: one batch's copies can then overlap the
    computation of another."""
    max_batch_size: int | None
    """Most images of one run; None: any number."""
    is_reference: bool
    """Whether it runs the fp32 ONNX file on the CPU, which is what the export has verified."""

    def run(self, images: NDArray[np.uint8], flip: bool = False) -> Mapping[str, NDArray[Any]]:
        """Run uint8 RGB (n, height, width, 3); every output has n rows in the same order.

        ``flip`` takes the artifact that averages over the mirror images, of which the manifest
        says whether the package has it.
        """
        ...


BACKENDS: Mapping[str, Callable[[ModelPackage, int], Engine]] = {
    "onnxruntime-cuda": lambda package, threads: OnnxRuntimeEngine(
        package, "CUDAExecutionProvider", threads
    ),
    "onnxruntime-cpu": lambda package, threads: OnnxRuntimeEngine(
        package, "CPUExecutionProvider", threads
    ),
}
"""Every backend by name, fastest first: ``auto`` takes the first that this machine can run."""


def open_engine(package: ModelPackage, backend: str, threads: int) -> Engine:
    """Open ``package`` with the named backend, or with the first that works for ``auto``.

    Raises :class:`EngineUnavailableError`; a backend asked for by name never falls back.
    """
    if backend != "auto":
        return BACKENDS[backend](package, threads)
    refusals = []
    for name, open_backend in BACKENDS.items():
        try:
            engine = open_backend(package, threads)
        except EngineUnavailableError as error:
            _log.info("%s: not %s: %s", package.manifest.name, name, error)
            refusals.append(f"{name}: {error}")
        else:
            _log.info("%s: runs on %s", package.manifest.name, engine.description)
            return engine
    raise EngineUnavailableError(
        f"no backend can run {package.manifest.name}: {'; '.join(refusals)}"
    )
