"""Runtime cache of TensorRT-RTX: compiled kernels, stored beside the engine for the next start."""

import logging
import os
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


class RuntimeCache:
    """The runtime cache of one engine file, and the runtime configuration that uses it.

    TensorRT-RTX itself rejects a cache of another version, GPU or driver. If the directory of the
    engine is read-only, the kernels are compiled again at the next start.
    """

    def __init__(self, trt: Any, engine: Any, engine_file: Path) -> None:
        self._path = engine_file.with_name(f".{engine_file.name}.runtime_cache")
        self.runtime_config = engine.create_runtime_config()
        # TensorRT-RTX captures the CUDA graph of the whole network itself, one per shape.
        self.runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # Kernels specialised to the shapes in use, compiled in the background; there are few
        # batch sizes.
        self.runtime_config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.LAZY
        )
        self._cache = self.runtime_config.create_runtime_cache()
        self._stored = self._path.read_bytes() if self._path.is_file() else b""
        if self._stored and not self._cache.deserialize(self._stored):
            _log.info("%s is of another version, GPU or driver and will be replaced", self._path)
        self.runtime_config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the cache atomically if it has changed."""
        content = bytes(self._cache.serialize())
        if content == self._stored:
            return
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            temporary.write_bytes(content)
            temporary.replace(self._path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            _log.info("the TensorRT-RTX runtime cache is not stored for the next start: %s", error)
        self._stored = content
