"""Fake of the TensorRT runtime: executes plans in JSON on the fake CUDA runtime.

Every output of an image is the mean of its pixels times a factor, as in the ONNX graphs of
:func:`support.engines.mean_graph`, so that all backends must return the same outputs.
"""

import json
import threading
from collections.abc import Sequence
from enum import Enum
from types import ModuleType
from typing import Any

import numpy as np

from model_package import Decoder
from support.fake_cuda import FakeCudaRuntime, IllegalAddressError


def serialized_plan(
    decoder: Decoder,
    factor: float = 1.0,
    height_px: tuple[int, int] = (64, 64),
    width_px: tuple[int, int] = (64, 64),
    batch: tuple[int, int, int] = (1, 4, 8),
    **overrides: Any,
) -> bytes:
    """Return a plan for images with the given minimum and maximum sides."""
    low, high = zip(height_px, width_px, strict=True)
    fields = {
        "factor": factor,
        "profile": [[batch[0], *low, 3], [batch[1], *low, 3], [batch[2], *high, 3]],
        "input_dtype": "uint8",
        "outputs": [[spec.name, spec.dtype, list(spec.shape)] for spec in decoder.outputs()],
    }
    return json.dumps(fields | overrides).encode()


class ILogger:
    Severity = Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")


WORKSPACE_BYTES_PER_IMAGE = 1000
DataType = Enum("DataType", "FLOAT HALF INT32 INT64 UINT8")
_DTYPES = {
    "float32": DataType.FLOAT,
    "int32": DataType.INT32,
    "int64": DataType.INT64,
    "uint8": DataType.UINT8,
}


class CudaGraphStrategy(Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class ExecutionContextAllocationStrategy(Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class IRuntimeCache:
    def __init__(self, gpu: str) -> None:
        self.header = f"cache of {gpu}:".encode()
        self.kernels: set[int] = set()

    def deserialize(self, content: bytes) -> bool:
        if not content.startswith(self.header):
            return False
        self.kernels = set(content.removeprefix(self.header))
        return True

    def serialize(self) -> bytes:
        return self.header + bytes(sorted(self.kernels))


class IRuntimeConfig:
    cuda_graph_strategy: Any = CudaGraphStrategy.DISABLED
    dynamic_shapes_kernel_specialization_strategy: Any = None

    def __init__(self, gpu: str) -> None:
        self.gpu = gpu
        self.cache: IRuntimeCache | None = None

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache(self.gpu)

    def set_runtime_cache(self, cache: IRuntimeCache) -> None:
        self.cache = cache


class FakeTensorrt(ModuleType):
    """Fake of the module ``tensorrt``, or of ``tensorrt_rtx`` with ``rtx``."""

    ILogger = ILogger
    DataType = DataType
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy

    def __init__(self, cuda: FakeCudaRuntime, version: str, rtx: bool = False) -> None:
        super().__init__("tensorrt_rtx" if rtx else "tensorrt")
        self.__version__ = version
        self.cuda = cuda
        self.contexts: list[IExecutionContext] = []
        self.rtx = rtx
        self.has_plugins = rtx  # part of the library itself
        if rtx:
            self.CudaGraphStrategy = CudaGraphStrategy
            self.DynamicShapesKernelSpecializationStrategy = (
                DynamicShapesKernelSpecializationStrategy
            )
        else:
            self.init_libnvinfer_plugins = self._register_plugins

    def _register_plugins(self, logger: Any, namespace: str) -> bool:
        assert isinstance(logger, ILogger)
        assert namespace == ""
        self.has_plugins = True
        return True

    def Runtime(self, logger: Any) -> "Runtime":  # noqa: N802
        return Runtime(self, logger)


class Runtime:
    def __init__(self, trt: FakeTensorrt, logger: Any) -> None:
        self._trt, self._logger = trt, logger

    def deserialize_cuda_engine(self, content: bytes) -> "ICudaEngine | None":
        if not self._trt.has_plugins:
            self._logger.log(ILogger.Severity.ERROR, "Plugin not found: ModulatedDeformConv2d")
            return None
        try:
            plan = json.loads(content)
        except ValueError:
            self._logger.log(ILogger.Severity.ERROR, "Magic tag does not match")
            return None
        return ICudaEngine(self._trt, plan, self._logger)


class ICudaEngine:
    def __init__(self, trt: FakeTensorrt, plan: dict[str, Any], logger: Any) -> None:
        self.trt, self.plan, self.logger = trt, plan, logger
        self.tensors = {"images": (plan["input_dtype"], [None] * 3)}
        self.tensors |= {name: (dtype, shape) for name, dtype, shape in plan["outputs"]}

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return _DTYPES[self.tensors[name][0]]

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        return [-1, *self.tensors[name][1]]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        assert (name, profile) == ("images", 0)
        return self.plan["profile"]

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig("this GPU")

    @property
    def device_memory_size_v2(self) -> int:
        return self.plan["profile"][2][0] * WORKSPACE_BYTES_PER_IMAGE

    def create_execution_context(
        self, config: IRuntimeConfig | ExecutionContextAllocationStrategy
    ) -> "IExecutionContext | None":
        if self.plan.get("too_large"):
            self.logger.log(ILogger.Severity.ERROR, "out of memory")
            return None
        runtime_config = config if isinstance(config, IRuntimeConfig) else None
        assert (runtime_config is not None) == self.trt.rtx
        if runtime_config is None:
            assert config is ExecutionContextAllocationStrategy.USER_MANAGED
        context = IExecutionContext(self, runtime_config)
        self.trt.contexts.append(context)
        return context


class IExecutionContext:
    """Records the shapes that were enqueued and captured.

    A captured graph depends on the state of its context: a replay after the context ran another
    shape is an illegal access.
    """

    def __init__(self, engine: ICudaEngine, runtime_config: IRuntimeConfig | None) -> None:
        self.engine = engine
        self.runtime_config = runtime_config
        self.fail_next = False
        self.enqueued: list[tuple[int, ...]] = []
        self.captured: list[tuple[int, ...]] = []
        self.workspace: tuple[int, int] | None = None
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] | None = None
        self._lock = threading.Lock()

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        low, _, high = self.engine.plan["profile"]
        if not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            self.engine.logger.log(ILogger.Severity.ERROR, f"{name}: outside of the profile")
            return False
        self._shape = tuple(shape)
        return True

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        assert name in self.engine.tensors
        assert pointer % 256 == 0, f"{name} is not aligned to 256 bytes"
        self._addresses[name] = pointer
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        self.workspace = memory, size

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self._lock.acquire(blocking=False), "two threads use one context at a time"
        try:
            return self._execute(stream_handle)
        finally:
            self._lock.release()

    def _execute(self, stream: int) -> bool:
        cuda, shape, addresses = self.engine.trt.cuda, self._shape, dict(self._addresses)
        assert shape is not None
        assert set(addresses) == set(self.engine.tensors), "a tensor has no address"
        new_shape = not self.enqueued or self.enqueued[-1] != shape
        is_capturing = cuda.is_capturing(stream)
        cannot_capture = self.engine.trt.rtx or new_shape
        cannot_capture |= shape[0] == self.engine.plan.get("cannot_capture_batch")
        if is_capturing and cannot_capture:
            self.engine.logger.log(ILogger.Severity.ERROR, "this cannot be captured")
            return False
        if self.fail_next:
            self.fail_next = False
            self.engine.logger.log(ILogger.Severity.ERROR, "enqueue failed for a test")
            return False
        if self.runtime_config is not None and self.runtime_config.cache is not None:
            self.runtime_config.cache.kernels.add(shape[0])
        self.enqueued.append(shape)
        if is_capturing:
            self.captured.append(shape)
        cuda.enqueue(stream, lambda: self._compute(shape, addresses, is_capturing))
        return True

    def _compute(self, shape: tuple[int, ...], addresses: dict[str, int], is_replay: bool) -> None:
        if self.engine.plan.get("out_of_bounds"):
            raise IllegalAddressError("a kernel of the engine accesses memory out of bounds")
        if is_replay and self.enqueued[-1] != shape:
            raise IllegalAddressError("the context of the graph ran another shape since")
        cuda = self.engine.trt.cuda
        if not self.engine.trt.rtx:
            assert self.workspace is not None
            cuda.memory("device", self.workspace[0], self.engine.device_memory_size_v2)
            assert self.workspace[1] >= self.engine.device_memory_size_v2
        images = cuda.memory("device", addresses["images"], int(np.prod(shape))).reshape(shape)
        means = images.mean(axis=(1, 2, 3), dtype=np.float32) * self.engine.plan["factor"]
        for name, dtype, row_shape in self.engine.plan["outputs"]:
            rows = np.empty((shape[0], *row_shape), dtype)
            rows[:] = means.reshape(-1, *[1] * len(row_shape)).astype(dtype)
            cuda.memory("device", addresses[name], rows.nbytes)[:] = rows.reshape(-1).view(np.uint8)
