"""The engines of the third-party servers, with the settings that the service uses.

They depend on NumPy and the runtimes and on nothing of this project.
"""

import queue
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime

# Without this package OpenVINO sends no telemetry.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402

BATCH_SIZES = (4, 1)
"""Batch sizes that OpenVINO compiles the model for; other batches are divided into these."""


class Engine(Protocol):
    """A model that is ready to run."""

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Run a batch, uint8 (n, height, width, 3); return the outputs by position."""
        ...


class OnnxRuntimeEngine:
    """One session; every concurrent run computes in its calling thread."""

    def __init__(self, model: Path, names: Sequence[str], threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._names = list(names)
        self._session = onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Run a batch; see :meth:`Engine.run`."""
        return list(self._session.run(self._names, {"images": images}))


class OpenVinoEngine:
    """Compiled models of fixed batch sizes, with one stream per concurrent run."""

    def __init__(
        self,
        model: Path,
        names: Sequence[str],
        shape: tuple[int, int, int],
        precision: str,
        threads: int,
        concurrency: int,
    ) -> None:
        core = openvino.Core()
        properties = {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            "NUM_STREAMS": concurrency,
            "INFERENCE_NUM_THREADS": concurrency * threads,
            "ENABLE_CPU_PINNING": False,
        }
        compiled = {}
        for size in BATCH_SIZES:
            network = core.read_model(model)
            network.reshape([size, *shape])
            compiled[size] = core.compile_model(network, "CPU", properties)
        self._names = names
        self._requests: queue.SimpleQueue[dict[int, openvino.InferRequest]] = queue.SimpleQueue()
        for _ in range(concurrency):
            self._requests.put({size: one.create_infer_request() for size, one in compiled.items()})

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Run a batch; see :meth:`Engine.run`."""
        requests = self._requests.get()
        try:
            parts = []
            start = 0
            for size in BATCH_SIZES:
                while len(images) - start >= size:
                    part = openvino.Tensor(images[start : start + size], shared_memory=True)
                    request = requests[size]
                    request.set_input_tensor(part)
                    request.infer()
                    # Copied, because the next run overwrites the tensors of the request.
                    parts.append([request.get_tensor(name).data.copy() for name in self._names])
                    start += size
        finally:
            self._requests.put(requests)
        return [np.concatenate(rows) for rows in zip(*parts, strict=True)]
