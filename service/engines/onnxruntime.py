"""ONNX Runtime, on the CPU or with CUDA."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_package import ModelManifest, ModelPackage, OnnxArtifact
from model_package.manifest import Precision
from service.engines.cpu_affinity import CORES
from service.engines.cuda import Cuda, Stream
from service.engines.engine import EngineOptions, Images
from service.engines.errors import EngineUnavailableError
from service.engines.gpu_engine import GpuEngine, Tensors
from service.engines.precision import ON_CPU, ON_GPU, choose_precision

_log = logging.getLogger(__name__)

_NO_GRAPH = -1
"""The ``gpu_graph_id`` of a run that is neither captured nor replayed."""


class OnnxRuntimeEngine:
    """Runs the package's fp32 files on the CPU.

    Runs at a time share one session and with it the weights; each computes in the thread that
    calls it, and in ``threads - 1`` more of the session's.
    """

    max_batch_size: int | None = None
    is_reference = True

    def __init__(self, package: ModelPackage, options: EngineOptions) -> None:
        onnxruntime = _import("CPUExecutionProvider")
        session_options = _session_options(onnxruntime)
        session_options.intra_op_num_threads = options.threads
        # Idle engine threads that spin would take the cores that decode the next images.
        session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        artifacts = _choose(package.manifest, ON_CPU)
        self._session_by_flip = {
            flip: _open(onnxruntime, package, artifact, "CPUExecutionProvider", {}, session_options)
            for flip, artifact in artifacts.items()
        }
        self._input_name = package.manifest.input.name
        self._output_names = [output.name for output in package.manifest.decoder.outputs()]
        self.concurrency = options.concurrency
        self._has_own_threads = options.threads > 1
        self.description = f"onnxruntime {onnxruntime.__version__} CPUExecutionProvider, fp32"

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        """Run one batch; see :class:`service.engines.Engine`."""
        batch = images if isinstance(images, np.ndarray) else np.stack(images)
        with nullcontext() if self._has_own_threads else CORES.hold():
            values = self._session_by_flip[flip].run(self._output_names, {self._input_name: batch})
        return dict(zip(self._output_names, values, strict=True))

    def close(self) -> None:
        """Drop the sessions; see :class:`service.engines.Engine`."""
        self._session_by_flip.clear()


def open_cuda_engine(package: ModelPackage, options: EngineOptions) -> GpuEngine:
    """Run the package's files with ONNX Runtime on a GPU.

    One session per file serves both slots, on one stream of its own: a slot's copies overlap the
    run of the other slot, and the weights are there once. ONNX Runtime captures the launches
    itself, per slot and batch size; all its runs are made from one thread, because graphs that
    were captured in one thread do not exist in others.
    """
    provider = "CUDAExecutionProvider"
    onnxruntime = _import(provider)
    cuda = Cuda()
    manifest = package.manifest
    artifacts = _choose(manifest, ON_GPU)
    precision = next(iter(artifacts.values())).precision
    with cuda.opening():
        computing = Stream(cuda)
        provider_options = {
            "device_id": "0",
            "user_compute_stream": str(computing.pointer),
            "use_tf32": "0",  # it would round float32 products to 10 bits
            "enable_cuda_graph": "1",
        }
        sessions = {
            flip: _open_with_graphs(onnxruntime, package, artifact, provider, provider_options)
            for flip, artifact in artifacts.items()
        }
        thread = ThreadPoolExecutor(1, thread_name_prefix="onnxruntime-cuda")
        cuda.keep(thread.shutdown)
        return GpuEngine(
            cuda,
            manifest,
            f"onnxruntime {onnxruntime.__version__} {provider}, {precision}",
            options.max_batch_size,
            lambda slot: {
                flip: _CudaProgram(onnxruntime, session, manifest, slot, computing, thread)
                for flip, session in sessions.items()
            },
            capture=False,
        )


class _CudaProgram:
    """A session's runs for one slot."""

    def __init__(
        self,
        onnxruntime: Any,
        session: Any,
        manifest: ModelManifest,
        slot: int,
        computing: Stream,
        thread: ThreadPoolExecutor,
    ) -> None:
        self._onnxruntime = onnxruntime
        self._session = session
        self._input = manifest.input
        self._outputs = manifest.decoder.outputs()
        self._slot = slot
        self._computing = computing
        self._thread = thread

    def enqueue(self, tensors: Tensors, stream: Stream) -> None:
        """Put one run behind the slot's copies; see :class:`service.engines.gpu_engine.Program`."""
        self._thread.submit(self._enqueue, tensors, stream).result()

    def _enqueue(self, tensors: Tensors, stream: Stream) -> None:
        size = tensors.shape[0]
        binding = self._session.io_binding()
        binding.bind_input(self._input.name, "cuda", 0, np.uint8, tensors.shape, tensors.images)
        for spec in self._outputs:
            shape, pointer = (size, *spec.shape), tensors.outputs[spec.name]
            binding.bind_output(spec.name, "cuda", 0, np.dtype(spec.dtype), shape, pointer)
        options = self._onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(self._graph_id(tensors)))
        # The slot waits for its own stream, so the session need not.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._computing.follow(stream)
        self._session.run_with_iobinding(binding, options)
        stream.follow(self._computing)

    def _graph_id(self, tensors: Tensors) -> int:
        """One number per slot and batch size: a graph holds the addresses it was captured with."""
        size, height_px, width_px, _ = tensors.shape
        if (height_px, width_px) != (self._input.height_px, self._input.width_px):
            return _NO_GRAPH
        return 2 * size + self._slot


def _import(provider: str) -> Any:
    try:
        onnxruntime = import_module("onnxruntime")
    except ImportError:
        raise EngineUnavailableError(
            "ONNX Runtime is not installed; install the extra 'serve', or 'gpu' for CUDA."
        ) from None
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise EngineUnavailableError(
            f"ONNX Runtime {onnxruntime.__version__} has no {provider} here, only "
            f"{', '.join(available)}; for CUDA install the extra 'gpu' instead of 'serve'."
        )
    return onnxruntime


def _choose(
    manifest: ModelManifest, precisions: Sequence[Precision]
) -> Mapping[bool, OnnxArtifact]:
    files = [artifact for artifact in manifest.artifacts if isinstance(artifact, OnnxArtifact)]
    artifacts = choose_precision(manifest, files, precisions)
    if not artifacts:
        raise EngineUnavailableError(
            f"the package has no ONNX files in {' or '.join(precisions)} for every variant of the "
            f"graph, only {', '.join(file.file for file in files)}. Export it again."
        )
    return artifacts


def _session_options(onnxruntime: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options


def _open_with_graphs(
    onnxruntime: Any,
    package: ModelPackage,
    artifact: OnnxArtifact,
    provider: str,
    provider_options: Mapping[str, str],
) -> Any:
    """Open a session that captures its launches, or one that does not where that is refused.

    ONNX Runtime refuses when an operator of the file runs on the CPU.
    """
    options = _session_options(onnxruntime)
    try:
        return _open(onnxruntime, package, artifact, provider, provider_options, options)
    except EngineUnavailableError as error:
        _log.warning("%s, without CUDA graphs because: %s", artifact.file, error)
    plain = {**provider_options, "enable_cuda_graph": "0"}
    return _open(onnxruntime, package, artifact, provider, plain, options)


def _open(
    onnxruntime: Any,
    package: ModelPackage,
    artifact: OnnxArtifact,
    provider: str,
    provider_options: Mapping[str, str],
    session_options: Any,
) -> Any:
    path = package.path_of(artifact)
    try:
        session = onnxruntime.InferenceSession(
            path,
            sess_options=session_options,
            providers=[(provider, dict(provider_options))],
            enable_fallback=0,
        )
    except Exception as error:  # onnxruntime raises classes of its own that it does not export
        raise EngineUnavailableError(f"{path} cannot be loaded: {error}") from error
    if provider not in session.get_providers():
        # Asked for CUDA, a session falls back to the CPU without an error.
        raise EngineUnavailableError(
            f"{provider} did not start (driver or CUDA libraries missing?); "
            f"the session would run on {', '.join(session.get_providers())}."
        )
    return session
