"""TensorRT and TensorRT-RTX backends: run engines that were built ahead of time."""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from model_package import ModelManifest, ModelPackage
from model_package.manifest import EngineArtifact
from model_package.tensorrt_libraries import (
    TensorRTLibrary,
    TensorRTLibraryError,
    load_tensorrt_library,
    register_plugins,
)
from service.engines.cuda import CudaDevice, Stream
from service.engines.engine import EngineOptions
from service.engines.errors import EngineUnavailableError
from service.engines.gpu_engine import (
    NUM_INSTANCES,
    DeviceTensors,
    GpuEngine,
    open_with_cuda_graphs,
)
from service.engines.precision import ComputePrecision, select_artifacts
from service.engines.rtx_runtime_cache import RuntimeCache

_log = logging.getLogger(__name__)


def open_tensorrt_engine(
    package: ModelPackage, options: EngineOptions, library: TensorRTLibrary
) -> GpuEngine:
    """Load the engines of a package that fit this machine.

    Raises :class:`~service.engines.errors.EngineUnavailableError` if there are none, with the
    requirements of each, and :class:`~service.engines.errors.EngineBrokenError`.
    """
    device = CudaDevice()
    hint = f"Build one: centernet-export build {package.directory} --backend {library.name}"
    trt, artifacts = _select_engines(package.manifest, device, library, options.precisions, hint)
    min_batch_size = max(artifact.batch.min for artifact in artifacts.values())
    max_batch_size = min(artifact.batch.max for artifact in artifacts.values())
    precision = next(iter(artifacts.values())).precision
    with device.close_on_error():
        loaded_engines = {
            flip: _LoadedEngine(trt, package, artifact, library, hint)
            for flip, artifact in artifacts.items()
        }

        def open_engine(cuda_graphs: bool) -> GpuEngine:
            workspace_bytes = max(engine.workspace_bytes for engine in loaded_engines.values())
            workspaces = [Workspace(device, workspace_bytes) for _ in range(NUM_INSTANCES)]
            return GpuEngine(
                device,
                package.manifest,
                f"{library.title} {trt.__version__}",
                precision,
                max(min_batch_size, min(max_batch_size, options.max_batch_size)),
                lambda index, flip: loaded_engines[flip].create_context(device, workspaces[index]),
                capture_graphs=cuda_graphs and not library.compiles_at_run_time,
                min_batch_size=min_batch_size,
            )

        engine = open_with_cuda_graphs(device, package.manifest.name, open_engine)
        for loaded in loaded_engines.values():
            loaded.save_runtime_cache()
    return engine


class Workspace:
    """Device memory for activations, used by all contexts of an instance in turn.

    The contexts of an instance never run at the same time, because they share its stream.
    TensorRT-RTX contexts have memory of their own, so ``size_bytes`` is 0 for them.
    """

    def __init__(self, device: CudaDevice, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.pointer: int = device.create("cudaMalloc", "cudaFree", size_bytes) if size_bytes else 0


class _TensorRTContext:
    """Execution context of one instance, or of one captured graph of it."""

    def __init__(
        self, context: Any, input_name: str, device: CudaDevice, logger: "_ErrorLog"
    ) -> None:
        self._context = context
        self._input_name = input_name
        self._device = device
        self._log = logger

    def enqueue(self, tensors: DeviceTensors, stream: Stream) -> None:
        """Implement :meth:`service.engines.gpu_engine.ExecutionContext.enqueue`."""
        context = self._context
        if not context.set_input_shape(self._input_name, tensors.shape):
            raise ValueError(
                f"the engine was not built for a batch of shape {tensors.shape}"
                f"{self._log.pop_errors()}"
            )
        context.set_tensor_address(self._input_name, tensors.images)
        for name, pointer in tensors.outputs.items():
            context.set_tensor_address(name, pointer)
        if not context.execute_async_v3(stream.handle):
            self._device.raise_if_sticky_error("execute_async_v3")
            raise RuntimeError(f"a batch of shape {tensors.shape} failed{self._log.pop_errors()}")


class _LoadedEngine:
    """One deserialised engine, with the runtime cache of TensorRT-RTX."""

    def __init__(
        self,
        trt: Any,
        package: ModelPackage,
        artifact: EngineArtifact,
        library: TensorRTLibrary,
        hint: str,
    ) -> None:
        self._trt = trt
        self._log = _error_log(trt)
        self._input_name = package.manifest.input.name
        path = package.path_of(artifact)
        register_plugins(library, trt, self._log.logger)
        self._engine = trt.Runtime(self._log.logger).deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise EngineUnavailableError(
                f"{path} cannot be loaded{self._log.pop_errors()}. It is damaged, or was built for "
                f"another machine or driver. {hint}"
            )
        problem = _tensor_mismatch(trt, self._engine, package.manifest) or _profile_mismatch(
            self._engine, package.manifest
        )
        if problem is not None:
            raise EngineUnavailableError(f"{path} {problem}. {hint}")
        self._cache = (
            RuntimeCache(trt, self._engine, path) if library.compiles_at_run_time else None
        )

    @property
    def workspace_bytes(self) -> int:
        """Activation memory that a context needs; 0 for TensorRT-RTX, which allocates it."""
        return 0 if self._cache is not None else int(self._engine.device_memory_size_v2)

    def create_context(self, device: CudaDevice, workspace: Workspace) -> _TensorRTContext:
        """Create an execution context whose activations are in ``workspace``."""
        if self._cache is not None:
            context = self._engine.create_execution_context(self._cache.runtime_config)
        else:
            strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = self._engine.create_execution_context(strategy)
        if context is None:
            device.raise_if_sticky_error("create_execution_context")
            raise RuntimeError(f"no execution context could be created{self._log.pop_errors()}")
        if self._cache is None:
            context.set_device_memory(workspace.pointer, workspace.size_bytes)
        return _TensorRTContext(context, self._input_name, device, self._log)

    def save_runtime_cache(self) -> None:
        """Store the kernels that TensorRT-RTX compiled for the next start."""
        if self._cache is not None:
            self._cache.save()


def _select_engines(
    manifest: ModelManifest,
    device: CudaDevice,
    library: TensorRTLibrary,
    precisions: Sequence[ComputePrecision],
    hint: str,
) -> tuple[Any, Mapping[bool, EngineArtifact]]:
    """Import the library and select the engines for its version and this GPU, by flip."""
    candidates = [
        artifact
        for artifact in manifest.artifacts
        if isinstance(artifact, EngineArtifact) and artifact.backend == library.backend
    ]
    if not candidates:
        raise EngineUnavailableError(f"the package has no {library.title} engine. {hint}")
    try:
        trt = load_tensorrt_library(library, extra="gpu")
    except TensorRTLibraryError as error:
        raise EngineUnavailableError(str(error)) from error
    # An engine tuned on this model of GPU is preferred to one for its compute capability.
    candidates.sort(key=lambda artifact: artifact.requires.gpu is None)
    mismatches = {
        artifact.file: _machine_mismatch(artifact, trt, device, library) for artifact in candidates
    }
    compatible = [artifact for artifact in candidates if not mismatches[artifact.file]]
    if not compatible:
        listed = "; ".join(f"{file} {mismatch}" for file, mismatch in mismatches.items())
        raise EngineUnavailableError(
            f"none of the package's {library.title} engines runs on this machine: {listed}. {hint}"
        )
    artifacts = select_artifacts(manifest, compatible, precisions)
    if not artifacts:
        listed = ", ".join(artifact.file for artifact in compatible)
        raise EngineUnavailableError(
            f"the package has ONNX files with and without averaging over flipped images, but "
            f"{library.title} engines for this machine only for some of them: {listed}. {hint}"
        )
    return trt, artifacts


def _machine_mismatch(
    artifact: EngineArtifact, trt: Any, device: CudaDevice, library: TensorRTLibrary
) -> str:
    """Return the requirements that this machine does not meet, or an empty string."""
    requires, gpu = artifact.requires, device.gpu
    mismatches = []
    if requires.version != trt.__version__:
        mismatches.append(
            f"needs {library.title} {requires.version}, {trt.__version__} is installed"
        )
    if requires.compute_capability != gpu.compute_capability:
        mismatches.append(
            f"needs compute capability {requires.compute_capability}, "
            f"this GPU ({gpu.name}) has {gpu.compute_capability}"
        )
    elif requires.gpu not in (None, gpu.name):
        mismatches.append(f"was tuned on a {requires.gpu}, this GPU is a {gpu.name}")
    return " and ".join(mismatches)


def _tensor_mismatch(trt: Any, engine: Any, manifest: ModelManifest) -> str | None:
    """Return how the engine's tensors differ from the manifest; None if they do not."""
    dtypes = {"float32": trt.DataType.FLOAT, "int32": trt.DataType.INT32}
    expected = {spec.name: (dtypes[spec.dtype], spec.shape) for spec in manifest.decoder.outputs()}
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    if names != {manifest.input.name, *expected}:
        return f"has the tensors {sorted(names)}, which are not those of the manifest"
    for name, dtype_and_shape in expected.items():
        actual = engine.get_tensor_dtype(name), tuple(engine.get_tensor_shape(name))[1:]
        if actual != dtype_and_shape:
            return f"has the output {name} as {actual}, the manifest says {dtype_and_shape}"
    if engine.get_tensor_dtype(manifest.input.name) != trt.DataType.UINT8:
        return "does not take uint8 images"
    return None


def _profile_mismatch(engine: Any, manifest: ModelManifest) -> str | None:
    """Return which image size of the manifest the optimization profile excludes; None if none."""
    min_shape, _, max_shape = engine.get_tensor_profile_shape(manifest.input.name, 0)
    sizes_px = [(manifest.input.height_px, manifest.input.width_px)]
    free_size = manifest.input.free_size
    if free_size is not None:
        shortest_px = free_size.multiple_px - free_size.reduction_px
        steps = (free_size.max_side_px - shortest_px) // free_size.multiple_px
        longest_px = shortest_px + steps * free_size.multiple_px
        sizes_px += [(shortest_px, shortest_px), (longest_px, longest_px)]
    for size_px in sizes_px:
        if not _is_within(size_px, tuple(min_shape)[1:3], tuple(max_shape)[1:3]):
            return (
                f"takes images of {_format_size(min_shape)} to {_format_size(max_shape)} px, "
                f"the manifest allows {size_px[1]}x{size_px[0]} too"
            )
    return None


def _is_within(size: Sequence[int], minimum: Sequence[int], maximum: Sequence[int]) -> bool:
    return all(low <= side <= high for low, side, high in zip(minimum, size, maximum, strict=True))


def _format_size(shape: Sequence[int]) -> str:
    _, height_px, width_px, _ = shape
    return f"{width_px}x{height_px}"


class _ErrorLog:
    """Forwards the library's messages to ``logging`` and keeps the last errors."""

    def __init__(self, trt: Any) -> None:
        severity = trt.ILogger.Severity
        error_levels = severity.INTERNAL_ERROR, severity.ERROR
        errors: deque[str] = deque(maxlen=3)

        class Logger(trt.ILogger):  # type: ignore[misc]  # a class of a module found at run time
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, level: Any, message: str) -> None:
                is_error = level in error_levels
                if is_error:
                    errors.append(message.strip())
                _log.log(logging.WARNING if is_error else logging.DEBUG, "%s", message)

        self.logger = Logger()
        self._errors = errors

    def pop_errors(self) -> str:
        """Return the last errors in parentheses, to end a message with, and forget them."""
        text = "; ".join(self._errors)
        self._errors.clear()
        return f" ({text})" if text else ""


@cache
def _error_log(trt: Any) -> _ErrorLog:
    """Return the log of a library.

    There is only one, because the library uses the first logger that it receives everywhere.
    """
    return _ErrorLog(trt)
