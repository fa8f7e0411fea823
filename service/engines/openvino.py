"""OpenVINO backend: the fp32 ONNX files on the CPU, computed in float32 or bfloat16."""

import queue
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_package import ModelManifest, ModelPackage
from service.engines.cpu_instructions import bf16_problem
from service.engines.engine import EngineOptions, Images
from service.engines.errors import EngineUnavailableError
from service.engines.openvino_operators import operator_extensions
from service.engines.precision import select_onnx_files

_DEVICE = "CPU"
_HINTS = {"fp32": "f32", "bf16": "bf16"}
"""``INFERENCE_PRECISION_HINT`` by precision. Without the hint OpenVINO chooses bf16 by itself."""


class OpenVinoEngine:
    """Runs the fp32 ONNX files of a package on the CPU; see :class:`service.engines.Engine`.

    Each concurrent run has a stream of ``threads`` threads, which belong to OpenVINO, and an infer
    request. The streams share the weights.
    """

    max_batch_size: int | None = None
    is_reference = False

    def __init__(self, package: ModelPackage, options: EngineOptions) -> None:
        (self.precision,) = options.precisions
        openvino = import_openvino()
        if self.precision == "bf16" and (problem := bf16_problem()):
            raise EngineUnavailableError(problem)
        self._create_tensor = openvino.Tensor
        self._output_names = [output.name for output in package.manifest.decoder.outputs()]
        self._requests_by_flip = {
            flip: _create_requests(openvino, package, artifact.file, options, self.precision)
            for flip, artifact in select_onnx_files(package.manifest, ["fp32"]).items()
        }
        self.concurrency = options.concurrency
        version = openvino.__version__.split("-")[0]
        self.description = f"OpenVINO {version}, {self.precision} on {_DEVICE}"

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        """Run one batch; see :meth:`service.engines.Engine.run`."""
        batch = _as_batch(images)
        requests = self._requests_by_flip[flip]
        request = requests.get()
        try:
            request.set_input_tensor(self._create_tensor(batch, shared_memory=True))
            request.infer(share_outputs=True)
            # The tensors belong to the request, whose next run overwrites them.
            return {name: request.get_tensor(name).data.copy() for name in self._output_names}
        finally:
            requests.put(request)

    def close(self) -> None:
        """Drop the compiled models; see :meth:`service.engines.Engine.close`."""
        self._requests_by_flip.clear()


def _as_batch(images: Images) -> NDArray[np.uint8]:
    """Return an array of shape (n, height, width, 3), without a copy if possible."""
    if not isinstance(images, np.ndarray):
        images = images[0][np.newaxis] if len(images) == 1 else np.stack(images)
    # The bindings accept only contiguous, writable memory.
    return np.require(images, requirements=["C", "W"])


def _create_requests(
    openvino: Any, package: ModelPackage, file: str, options: EngineOptions, precision: str
) -> "queue.SimpleQueue[Any]":
    """Compile a file and return one infer request per concurrent run."""
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
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    try:
        compiled = core.compile_model(path, _DEVICE, properties)
        for _ in range(options.concurrency):
            requests.put(compiled.create_infer_request())
    except Exception as error:  # OpenVINO has no exception class of its own
        raise EngineUnavailableError(
            f"OpenVINO {openvino.__version__} cannot load {path}: {_first_lines(error)}"
        ) from error
    return requests


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
