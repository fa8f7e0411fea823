"""ONNX Runtime, on the CPU or with CUDA."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from model_package import ModelPackage
from service.engines.errors import EngineUnavailableError


class OnnxRuntimeEngine:
    """Runs the package's ONNX artifacts with one execution provider."""

    concurrency = 1
    max_batch_size: int | None = None

    def __init__(self, package: ModelPackage, provider: str, threads: int) -> None:
        available = onnxruntime.get_available_providers()
        if provider not in available:
            raise EngineUnavailableError(
                f"ONNX Runtime {onnxruntime.__version__} has no {provider} here, only "
                f"{', '.join(available)}; for CUDA install the extra 'gpu' instead of 'serve'."
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Idle engine threads that spin would take the cores that decode the next pictures.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session_by_flip = {
            artifact.flip: _open_session(package.path_of(artifact), provider, options)
            for artifact in package.manifest.artifacts
            if artifact.backend == "onnxruntime"
        }
        self._input_name = package.manifest.input.name
        self._output_names = [output.name for output in package.manifest.decoder.outputs()]
        self.is_reference = provider == "CPUExecutionProvider"
        self.description = f"onnxruntime {onnxruntime.__version__} {provider}"

    def run(self, images: NDArray[np.uint8], flip: bool = False) -> Mapping[str, NDArray[Any]]:
        """Run one batch; see :class:`service.engines.Engine`."""
        values = self._session_by_flip[flip].run(self._output_names, {self._input_name: images})
        return dict(zip(self._output_names, values, strict=True))


def _open_session(
    path: Path, provider: str, options: onnxruntime.SessionOptions
) -> onnxruntime.InferenceSession:
    try:
        session = onnxruntime.InferenceSession(path, sess_options=options, providers=[provider])
    except Exception as error:  # onnxruntime raises classes of its own that it does not export
        raise EngineUnavailableError(f"{path} cannot be loaded: {error}") from error
    if provider not in session.get_providers():
        # Asked for CUDA, a session falls back to the CPU without an error.
        raise EngineUnavailableError(
            f"{provider} did not start (driver or CUDA libraries missing?); "
            f"the session would run on {', '.join(session.get_providers())}."
        )
    return session
