"""Kernels that TensorRT-RTX compiled for this GPU, kept beside the engine for the next start."""

import logging
import os
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


class RuntimeCache:
    """The runtime cache of one engine file, and the configuration that its contexts are made with.

    TensorRT-RTX checks by itself that a cache is of its version, GPU and driver. A directory that
    cannot be written to only costs the next start its time.
    """

    def __init__(self, trt: Any, engine: Any, engine_file: Path) -> None:
        self._path = engine_file.with_name(f".{engine_file.name}.runtime_cache")
        self.configuration = engine.create_runtime_config()
        # Its own way of launching a whole network at once, per shape.
        self.configuration.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # Kernels for the very shapes in use, compiled on the side; batch sizes are few.
        self.configuration.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.LAZY
        )
        self._cache = self.configuration.create_runtime_cache()
        self._stored = self._path.read_bytes() if self._path.is_file() else b""
        if self._stored and not self._cache.deserialize(self._stored):
            _log.info("%s is of another version, GPU or driver and is made anew", self._path)
        self.configuration.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write what was compiled since, if anything, in one step."""
        content = bytes(self._cache.serialize())
        if content == self._stored:
            return
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            draft.write_bytes(content)
            draft.replace(self._path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            _log.info("kernels compiled for this GPU are not kept for the next start: %s", error)
        self._stored = content
