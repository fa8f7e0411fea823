"""ONNX Runtime backends: the CPU execution provider and the CUDA execution provider."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_package import ModelManifest, ModelPackage, OnnxArtifact
from model_package.onnxruntime import OnnxRuntimeConflictError, load_onnxruntime
from service.engines.cpu_affinity import CPU_AFFINITY
from service.engines.cuda import CudaDevice, Stream
from service.engines.engine import EngineOptions, Images
from service.engines.errors import EngineUnavailableError
from service.engines.gpu_engine import (
    NUM_INSTANCES,
    DeviceTensors,
    GpuEngine,
    GraphCaptureError,
    open_with_cuda_graphs,
)
from service.engines.precision import ComputePrecision, select_onnx_files

_CPU_PROVIDER = "CPUExecutionProvider"
_CUDA_PROVIDER = "CUDAExecutionProvider"
_NO_GRAPH_ID = -1
"""``gpu_graph_id`` of a run that neither captures nor replays a CUDA graph."""


class OnnxRuntimeEngine:
    """Runs the fp32 ONNX files of a package on the CPU; see :class:`service.engines.Engine`.

    Concurrent runs share one session and its weights. Each run computes in the calling thread and
    in ``threads - 1`` threads of the session's intra-op pool.
    """

    precision: ComputePrecision = "fp32"
    max_batch_size: int | None = None
    is_reference = True

    def __init__(self, package: ModelPackage, options: EngineOptions) -> None:
        onnxruntime = _import_onnxruntime(_CPU_PROVIDER)
        session_options = _session_options(onnxruntime)
        session_options.intra_op_num_threads = options.threads
        # Idle threads of the pool that spin would occupy the cores that decode the next images.
        session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        artifacts = select_onnx_files(package.manifest, options.precisions)
        self._session_by_flip = {
            flip: _create_session(
                onnxruntime, package, artifact, _CPU_PROVIDER, {}, session_options
            )
            for flip, artifact in artifacts.items()
        }
        self._input_name = package.manifest.input.name
        self._output_names = [output.name for output in package.manifest.decoder.outputs()]
        self.concurrency = options.concurrency
        self._has_thread_pool = options.threads > 1
        self.description = f"onnxruntime {onnxruntime.__version__} {_CPU_PROVIDER}, fp32"

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        """Run one batch; see :meth:`service.engines.Engine.run`."""
        batch = images if isinstance(images, np.ndarray) else np.stack(images)
        with nullcontext() if self._has_thread_pool else CPU_AFFINITY.pin_thread():
            values = self._session_by_flip[flip].run(self._output_names, {self._input_name: batch})
        return dict(zip(self._output_names, values, strict=True))

    def close(self) -> None:
        """Drop the sessions; see :meth:`service.engines.Engine.close`."""
        self._session_by_flip.clear()


@dataclass(frozen=True)
class CudaOptions:
    """Settings of the CUDA execution provider; ADR 17 has the reasons for the defaults.

    Only ``benchmarks.gpu_check`` uses other values, to compare them with the defaults.
    """

    cudnn_conv_algo_search: str = "HEURISTIC"
    """How cuDNN chooses kernels for the convolutions when the shape of the input changes."""
    cuda_graphs: bool = True
    synchronize: bool = False
    """Whether a run waits for the GPU, which keeps the copies of the next batch waiting too."""


def open_cuda_engine(
    package: ModelPackage, options: EngineOptions, cuda_options: CudaOptions = CudaOptions()
) -> GpuEngine:
    """Load the ONNX files of a package with the CUDA execution provider.

    Both instances of the engine share one session per file, and with it the weights. The sessions
    run on one compute stream of their own, so the copies of one instance overlap the run of the
    other. ONNX Runtime captures CUDA graphs itself, per instance and batch size. All runs are made
    from one thread, because a graph can only be replayed in the thread that captured it.

    Raises :class:`~service.engines.errors.EngineUnavailableError` and
    :class:`~service.engines.errors.EngineBrokenError`.
    """
    onnxruntime = _import_onnxruntime(_CUDA_PROVIDER)
    device = CudaDevice()
    manifest = package.manifest
    artifacts = select_onnx_files(manifest, options.precisions)
    precision = next(iter(artifacts.values())).precision
    with device.close_on_error():

        def open_engine(cuda_graphs: bool) -> GpuEngine:
            compute_stream = Stream(device)
            provider_options = {
                "device_id": "0",
                "user_compute_stream": str(compute_stream.handle),
                "use_tf32": "0",  # TensorFloat-32 would round the factors of products to 10 bits
                "cudnn_conv_algo_search": cuda_options.cudnn_conv_algo_search,
                "enable_cuda_graph": str(int(cuda_graphs)),
            }
            try:
                sessions = {
                    flip: _create_session(
                        onnxruntime,
                        package,
                        artifact,
                        _CUDA_PROVIDER,
                        provider_options,
                        _session_options(onnxruntime),
                    )
                    for flip, artifact in artifacts.items()
                }
            except EngineUnavailableError as error:
                if cuda_graphs:  # refused if an operator of the file runs on the CPU
                    raise GraphCaptureError(str(error)) from error
                raise
            thread = ThreadPoolExecutor(1, thread_name_prefix="onnxruntime-cuda")
            device.add_close_callback(thread.shutdown)
            return GpuEngine(
                device,
                manifest,
                f"onnxruntime {onnxruntime.__version__} {_CUDA_PROVIDER}",
                precision,
                options.max_batch_size,
                lambda index, flip: _SessionContext(
                    onnxruntime,
                    sessions[flip],
                    manifest,
                    index,
                    compute_stream,
                    thread,
                    replace(cuda_options, cuda_graphs=cuda_graphs),
                ),
                capture_graphs=False,
            )

        if not cuda_options.cuda_graphs:
            return open_engine(False)
        return open_with_cuda_graphs(device, manifest.name, open_engine)


class _SessionContext:
    """Execution context of one instance: runs a session through I/O binding."""

    def __init__(
        self,
        onnxruntime: Any,
        session: Any,
        manifest: ModelManifest,
        instance_index: int,
        compute_stream: Stream,
        thread: ThreadPoolExecutor,
        cuda_options: CudaOptions,
    ) -> None:
        self._cuda_options = cuda_options
        self._captured_graphs = {_NO_GRAPH_ID}
        self._onnxruntime = onnxruntime
        self._session = session
        self._input = manifest.input
        self._output_specs = manifest.decoder.outputs()
        self._instance_index = instance_index
        self._compute_stream = compute_stream
        self._thread = thread

    def enqueue(self, tensors: DeviceTensors, stream: Stream) -> None:
        """Implement :meth:`service.engines.gpu_engine.ExecutionContext.enqueue`."""
        self._thread.submit(self._enqueue, tensors, stream).result()

    def _enqueue(self, tensors: DeviceTensors, stream: Stream) -> None:
        batch_size = tensors.shape[0]
        binding = self._session.io_binding()
        binding.bind_input(self._input.name, "cuda", 0, np.uint8, tensors.shape, tensors.images)
        for spec in self._output_specs:
            shape, pointer = (batch_size, *spec.shape), tensors.outputs[spec.name]
            binding.bind_output(spec.name, "cuda", 0, np.dtype(spec.dtype), shape, pointer)
        graph_id = self._graph_id(tensors)
        options = self._onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph_id))
        # The engine synchronises the stream of the instance, so the session need not.
        is_asynchronous = str(int(not self._cuda_options.synchronize))
        options.add_run_config_entry("disable_synchronize_execution_providers", is_asynchronous)
        self._compute_stream.wait_stream(stream)
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:  # of a class that onnxruntime does not export
            if graph_id in self._captured_graphs:
                raise
            raise GraphCaptureError(f"a batch of shape {tensors.shape}: {error}") from error
        self._captured_graphs.add(graph_id)
        stream.wait_stream(self._compute_stream)

    def _graph_id(self, tensors: DeviceTensors) -> int:
        """Return an id per instance and batch size, since a graph contains buffer addresses."""
        batch_size, height_px, width_px, _ = tensors.shape
        is_default = (height_px, width_px) == (self._input.height_px, self._input.width_px)
        if not (is_default and self._cuda_options.cuda_graphs):
            return _NO_GRAPH_ID
        return NUM_INSTANCES * batch_size + self._instance_index


def _import_onnxruntime(provider: str) -> Any:
    try:
        onnxruntime = load_onnxruntime()
    except OnnxRuntimeConflictError as error:
        raise EngineUnavailableError(str(error)) from None
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


def _session_options(onnxruntime: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options


def _create_session(
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
    except Exception as error:  # onnxruntime raises exception classes that it does not export
        raise EngineUnavailableError(f"{path} cannot be loaded: {error}") from error
    if provider not in session.get_providers():
        # A session that is created for CUDA falls back to the CPU without an error.
        raise EngineUnavailableError(
            f"{provider} did not start (driver or CUDA libraries missing?); "
            f"the session would run on {', '.join(session.get_providers())}."
        )
    return session
