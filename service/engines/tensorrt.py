"""TensorRT and TensorRT-RTX: engines that were built ahead of time for one kind of machine.

The two libraries have the same interface but for what :class:`Library` names.
"""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal

from model_package import ModelManifest, ModelPackage
from model_package.manifest import EngineArtifact
from service.engines.cuda import Cuda, Stream
from service.engines.engine import EngineOptions
from service.engines.errors import EngineUnavailableError
from service.engines.gpu_engine import GpuEngine, Tensors
from service.engines.precision import ON_GPU, choose_precision
from service.engines.rtx_runtime_cache import RuntimeCache

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Library:
    """One of the two libraries."""

    title: str
    module: str
    name: Literal["tensorrt", "tensorrt-rtx"]
    """Of the backend, of the extra that installs it, and for ``centernet-export build``."""
    backend: Literal["tensorrt", "tensorrt_rtx"]
    compiles_late: bool
    """Kernels are made for the GPU when they are first needed, kept in a runtime cache, and their
    launches recorded by the library itself."""


TENSORRT = Library("TensorRT", "tensorrt", "tensorrt", "tensorrt", compiles_late=False)
TENSORRT_RTX = Library(
    "TensorRT-RTX", "tensorrt_rtx", "tensorrt-rtx", "tensorrt_rtx", compiles_late=True
)


def open_tensorrt_engine(
    package: ModelPackage, options: EngineOptions, library: Library
) -> GpuEngine:
    """Run the package's engines for this machine.

    Raises :class:`EngineUnavailableError` where there are none, saying what each is for.
    """
    cuda = Cuda()
    remedy = f"Make one here: centernet-export build {package.directory} --backend {library.name}"
    trt, artifacts = _choose(package.manifest, cuda, library, remedy)
    smallest = max(artifact.batch.min for artifact in artifacts.values())
    largest = min(artifact.batch.max for artifact in artifacts.values())
    precision = next(iter(artifacts.values())).precision
    with cuda.opening():
        loaded = {
            flip: _Loaded(trt, package, artifact, library, remedy)
            for flip, artifact in artifacts.items()
        }
        engine = GpuEngine(
            cuda,
            package.manifest,
            f"{library.title} {trt.__version__}, {precision}",
            max(smallest, min(largest, options.max_batch_size)),
            lambda _: {flip: one.new_context(cuda) for flip, one in loaded.items()},
            capture=not library.compiles_late,
            smallest=smallest,
        )
        for one in loaded.values():
            one.save_runtime_cache()
    return engine


class _Context:
    """One execution context: what a slot runs an engine with."""

    def __init__(self, context: Any, input_name: str, cuda: Cuda, log: "_Log") -> None:
        self._context = context
        self._input_name = input_name
        self._cuda = cuda
        self._log = log

    def enqueue(self, tensors: Tensors, stream: Stream) -> None:
        """Put one run on the stream; see :class:`service.engines.gpu_engine.Program`."""
        context = self._context
        if not context.set_input_shape(self._input_name, tensors.shape):
            raise ValueError(
                f"the engine was not built for a batch of shape {tensors.shape}{self._log.said()}"
            )
        context.set_tensor_address(self._input_name, tensors.images)
        for name, pointer in tensors.outputs.items():
            context.set_tensor_address(name, pointer)
        if not context.execute_async_v3(stream.pointer):
            self._cuda.raise_if_broken("execute_async_v3")
            raise RuntimeError(f"a batch of shape {tensors.shape} failed{self._log.said()}")


class _Loaded:
    """One deserialised engine, and the runtime cache of TensorRT-RTX beside its file."""

    def __init__(
        self,
        trt: Any,
        package: ModelPackage,
        artifact: EngineArtifact,
        library: Library,
        remedy: str,
    ) -> None:
        self._trt = trt
        self._log = _log_of(trt)
        self._input_name = package.manifest.input.name
        path = package.path_of(artifact)
        self._engine = trt.Runtime(self._log.logger).deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise EngineUnavailableError(
                f"{path} cannot be loaded{self._log.said()}. It is damaged, or made for another "
                f"machine or driver. {remedy}"
            )
        problem = _tensor_problem(trt, self._engine, package.manifest)
        if problem is not None:
            raise EngineUnavailableError(f"{path} {problem}. {remedy}")
        self._cache = RuntimeCache(trt, self._engine, path) if library.compiles_late else None

    def new_context(self, cuda: Cuda) -> _Context:
        """Make a context with activation memory of its own."""
        configuration = () if self._cache is None else (self._cache.configuration,)
        context = self._engine.create_execution_context(*configuration)
        if context is None:
            cuda.raise_if_broken("create_execution_context")
            raise RuntimeError(f"there is no execution context{self._log.said()}")
        return _Context(context, self._input_name, cuda, self._log)

    def save_runtime_cache(self) -> None:
        """Keep what was compiled late for the next start."""
        if self._cache is not None:
            self._cache.save()


def _choose(
    manifest: ModelManifest, cuda: Cuda, library: Library, remedy: str
) -> tuple[Any, Mapping[bool, EngineArtifact]]:
    """Import the library, and take the engines that were built for it and this GPU, by flip."""
    built = [
        artifact
        for artifact in manifest.artifacts
        if isinstance(artifact, EngineArtifact) and artifact.backend == library.backend
    ]
    if not built:
        raise EngineUnavailableError(f"the package has no {library.title} engine. {remedy}")
    trt = _import(library)
    # An engine that was tuned on this very model of GPU comes before one for its whole family.
    built.sort(key=lambda artifact: artifact.requires.gpu is None)
    problems = {artifact.file: _mismatch(artifact, trt, cuda, library) for artifact in built}
    fitting = [artifact for artifact in built if not problems[artifact.file]]
    if not fitting:
        listed = "; ".join(f"{file} {problem}" for file, problem in problems.items())
        raise EngineUnavailableError(
            f"none of the package's {library.title} engines is for this machine: {listed}. {remedy}"
        )
    artifacts = choose_precision(manifest, fitting, ON_GPU)
    if not artifacts:
        listed = ", ".join(artifact.file for artifact in fitting)
        raise EngineUnavailableError(
            f"the package has ONNX files with and without averaging over flipped images, but "
            f"{library.title} engines for this machine only of some: {listed}. {remedy}"
        )
    return trt, artifacts


def _mismatch(artifact: EngineArtifact, trt: Any, cuda: Cuda, library: Library) -> str:
    """Why an engine is not for this machine; empty if it is."""
    requires = artifact.requires
    problems = []
    if requires.version != trt.__version__:
        problems.append(f"needs {library.title} {requires.version}, {trt.__version__} is installed")
    if requires.compute_capability != cuda.compute_capability:
        problems.append(
            f"needs compute capability {requires.compute_capability}, "
            f"this GPU ({cuda.gpu}) has {cuda.compute_capability}"
        )
    elif requires.gpu not in (None, cuda.gpu):
        problems.append(f"was tuned on a {requires.gpu}, this GPU is a {cuda.gpu}")
    return " and ".join(problems)


def _tensor_problem(trt: Any, engine: Any, manifest: ModelManifest) -> str | None:
    """What of the engine's inputs and outputs is not as the manifest says; None if all is."""
    dtypes = {"float32": trt.DataType.FLOAT, "int32": trt.DataType.INT32}
    expected = {spec.name: (dtypes[spec.dtype], spec.shape) for spec in manifest.decoder.outputs()}
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    if names != {manifest.input.name, *expected}:
        return f"has the tensors {sorted(names)}, which are not those of the manifest"
    for name, wanted in expected.items():
        found = engine.get_tensor_dtype(name), tuple(engine.get_tensor_shape(name))[1:]
        if found != wanted:
            return f"gives {name} as {found}, the manifest says {wanted}"
    if engine.get_tensor_dtype(manifest.input.name) != trt.DataType.UINT8:
        return "does not take uint8 images"
    smallest, _, largest = engine.get_tensor_profile_shape(manifest.input.name, 0)
    sizes_px = [(manifest.input.height_px, manifest.input.width_px)]
    free_size = manifest.input.free_size
    if free_size is not None:
        shortest_px = free_size.multiple_px - 1 + free_size.extra_px
        steps = (free_size.max_side_px - shortest_px) // free_size.multiple_px
        longest_px = shortest_px + steps * free_size.multiple_px
        sizes_px += [(shortest_px, shortest_px), (longest_px, longest_px)]
    for size_px in sizes_px:
        if not _within(size_px, tuple(smallest)[1:3], tuple(largest)[1:3]):
            return (
                f"takes images of {_size(smallest)} to {_size(largest)} px, "
                f"the package promises {size_px[1]}x{size_px[0]} too"
            )
    return None


def _within(size: Sequence[int], smallest: Sequence[int], largest: Sequence[int]) -> bool:
    return all(low <= one <= high for low, one, high in zip(smallest, size, largest, strict=True))


def _size(shape: Sequence[int]) -> str:
    _, height_px, width_px, _ = shape
    return f"{width_px}x{height_px}"


def _import(library: Library) -> Any:
    try:
        return import_module(library.module)
    except ImportError as error:
        raise EngineUnavailableError(
            f"{library.title} is not installed ({error}); beside the extra 'gpu' install "
            f"'{library.name}'."
        ) from None
    except Exception as error:  # its own libraries are missing, or are others than it expects
        raise EngineUnavailableError(
            f"{library.title} is installed but does not start ({error}); install the extra "
            f"'{library.name}' again."
        ) from error


class _Log:
    """What the library says, passed on to ``logging``."""

    def __init__(self, trt: Any) -> None:
        severity = trt.ILogger.Severity
        errors = severity.INTERNAL_ERROR, severity.ERROR
        problems: deque[str] = deque(maxlen=3)

        class Logger(trt.ILogger):  # type: ignore[misc]  # a class of a module found at run time
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, level: Any, message: str) -> None:
                if level in errors:
                    problems.append(message.strip())
                _log.log(logging.WARNING if level in errors else logging.DEBUG, "%s", message)

        self.logger = Logger()
        self._problems = problems

    def said(self) -> str:
        """The last errors, as the end of a sentence; they are not repeated."""
        text = "; ".join(self._problems)
        self._problems.clear()
        return f" ({text})" if text else ""


@cache
def _log_of(trt: Any) -> _Log:
    """The library keeps the first logger that it is given for good, so there is but one."""
    return _Log(trt)
