"""OpenVINO backend: ONNX files on the CPU, computed in float32, bfloat16 or int8."""

import queue
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from model_package import ModelManifest, ModelPackage, OnnxArtifact
from service.engines.cpu_instructions import bf16_problem
from service.engines.engine import EngineOptions, Images
from service.engines.errors import EngineUnavailableError
from service.engines.openvino_bf16 import keep_head_outputs_in_float32
from service.engines.openvino_operators import operator_extensions
from service.engines.precision import select_onnx_files

_DEVICE = "CPU"
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""``INFERENCE_PRECISION_HINT`` by precision. Without the hint OpenVINO chooses bf16 by itself.

For int8 it is the precision of everything but the quantized convolutions."""
_BATCH_SIZES = (4, 1)
"""Batch sizes that models are compiled for, descending. Other batches are divided into these:
a dynamic batch costs up to a fifth of the throughput (docs/adr/0018-openvino.md)."""
_LARGE_FILE_BYTES = 32 * 1024 * 1024
"""Size of the files that are compiled for batches of 1 only. Each compiled model has weights of its
own, and the fixed cost of a run, which larger batches share, is small for large networks."""


class OpenVinoEngine:
    """Runs the ONNX files of a package on the CPU; see :class:`service.engines.Engine`.

    ``int8`` runs the int8 files, the other precisions the fp32 files. Each concurrent run has a
    stream of ``threads`` threads, which belong to OpenVINO, and infer requests. The streams of a
    compiled model share its weights.
    """

    max_batch_size: int | None = None
    is_reference = False

    def __init__(self, package: ModelPackage, options: EngineOptions) -> None:
        (self.precision,) = options.precisions
        openvino = import_openvino()
        if self.precision == "bf16" and (problem := bf16_problem()):
            raise EngineUnavailableError(problem)
        files = select_onnx_files(
            package.manifest, ["int8" if self.precision == "int8" else "fp32"]
        )
        spec = package.manifest.input
        self._create_tensor = openvino.Tensor
        self._output_specs = package.manifest.decoder.outputs()
        # With a free size the only compiled model accepts every shape.
        self._batch_sizes = () if spec.free_size else _batch_sizes(files.values())
        shapes = {size: [size, spec.height_px, spec.width_px, 3] for size in self._batch_sizes}
        self._requests_by_flip = {
            flip: _create_requests(
                openvino, package, artifact.file, options, self.precision, shapes or {None: None}
            )
            for flip, artifact in files.items()
        }
        self.concurrency = options.concurrency
        version = openvino.__version__.split("-")[0]
        self.description = f"OpenVINO {version}, {self.precision} on {_DEVICE}"

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        """Run one batch; see :meth:`service.engines.Engine.run`."""
        batch = _as_batch(images)
        outputs = {
            spec.name: np.empty((len(batch), *spec.shape), spec.dtype)
            for spec in self._output_specs
        }
        pool = self._requests_by_flip[flip]
        requests = pool.get()
        try:
            for start, stop, size in self._parts(len(batch)):
                request = requests[size]
                part = self._create_tensor(batch[start:stop], shared_memory=True)
                request.set_input_tensor(part)
                request.infer(share_outputs=True)
                # Copied, because the request overwrites its tensors in its next run.
                for name, values in outputs.items():
                    values[start:stop] = request.get_tensor(name).data
        finally:
            pool.put(requests)
        return outputs

    def close(self) -> None:
        """Drop the compiled models; see :meth:`service.engines.Engine.close`."""
        self._requests_by_flip.clear()

    def _parts(self, count: int) -> Iterator[tuple[int, int, int | None]]:
        """Divide a batch: start, stop and key of the request that runs the part."""
        if not self._batch_sizes:
            yield 0, count, None
            return
        start = 0
        for size in self._batch_sizes:
            while count - start >= size:
                yield start, start + size, size
                start += size


def _batch_sizes(files: Iterable[OnnxArtifact]) -> tuple[int, ...]:
    is_large = max(file.size_bytes for file in files) > _LARGE_FILE_BYTES
    return _BATCH_SIZES[-1:] if is_large else _BATCH_SIZES


def _as_batch(images: Images) -> NDArray[np.uint8]:
    """Return an array of shape (n, height, width, 3), without a copy if possible."""
    if not isinstance(images, np.ndarray):
        images = images[0][np.newaxis] if len(images) == 1 else np.stack(images)
    # The bindings accept only contiguous, writable memory.
    return np.require(images, requirements=["C", "W"])


_Key = TypeVar("_Key")


def _create_requests(
    openvino: Any,
    package: ModelPackage,
    file: str,
    options: EngineOptions,
    precision: str,
    shapes: Mapping[_Key, list[int] | None],
) -> "queue.SimpleQueue[Mapping[_Key, Any]]":
    """Compile a file for each shape; return the infer requests of each concurrent run.

    The shape None leaves the dynamic dimensions of the file.
    """
    core = openvino.Core()
    for extension in operator_extensions(openvino, _longest_side_px(package.manifest)):
        core.add_extension(extension)
    path = package.directory / file
    properties = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "NUM_STREAMS": options.concurrency,
        "INFERENCE_NUM_THREADS": options.concurrency * options.threads,
        # The streams of every model would be pinned to the same first cores.
        "ENABLE_CPU_PINNING": False,
    }
    compiled = {}
    try:
        for key, shape in shapes.items():
            model = core.read_model(path)
            if shape is not None:
                model.reshape(shape)
            if precision == "bf16":
                keep_head_outputs_in_float32(openvino, model)
            compiled[key] = compile_model(core, model, properties)
    except Exception as error:  # OpenVINO has no exception class of its own
        raise EngineUnavailableError(
            f"OpenVINO {openvino.__version__} cannot load {path}: {_first_lines(error)}"
        ) from error
    pool: queue.SimpleQueue[Mapping[_Key, Any]] = queue.SimpleQueue()
    for _ in range(options.concurrency):
        pool.put({key: model.create_infer_request() for key, model in compiled.items()})
    return pool


def compile_model(core: Any, model: Any, properties: Mapping[str, Any]) -> Any:
    """Compile a model for the CPU, in a thread that ends.

    OpenVINO gives the thread that compiles a model a stack for signal handlers, and frees it with
    the model. If models are not freed in reverse order, the thread is left with a stack that is
    freed, and its next signal is a segmentation fault.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(core.compile_model, model, _DEVICE, properties).result()


def _longest_side_px(manifest: ModelManifest) -> int:
    spec = manifest.input
    longest_px = max(spec.width_px, spec.height_px)
    return max(longest_px, spec.free_size.max_side_px) if spec.free_size else longest_px


def _first_lines(error: Exception) -> str:
    """Return the message without the source locations that OpenVINO puts before it."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("Exception from"))[:500]


def import_openvino() -> Any:
    """Import the library without its telemetry; raises :class:`EngineUnavailableError`."""
    # `import openvino` sends usage statistics through this package and writes an identifier to the
    # home directory. Without the package it does neither.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return import_module("openvino")
    except ImportError as error:
        raise EngineUnavailableError(
            f"OpenVINO cannot be imported ({error}); install the extra 'serve', which contains it "
            "on Linux for x86-64 and aarch64."
        ) from None
