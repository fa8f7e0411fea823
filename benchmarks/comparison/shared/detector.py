"""The detector that all third-party servers use; only the server around it differs.

It depends on Pillow, OpenCV, NumPy and the runtimes and on nothing of this project. The steps are
those of the service: decode, warp (letterbox, as the package specifies), inference, and decoding of
peaks to boxes in image pixels.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from engines import BATCH_SIZES, Engine, OnnxRuntimeEngine, OpenVinoEngine
from preparer import Prepared, Preparer

OUTPUTS = ("scores", "class_ids", "centers", "sizes")


class Settings(NamedTuple):
    """Configuration of a server, from the environment variables ``SERVER_*``."""

    model: Path
    port: int
    backend: str
    """``onnxruntime-cpu`` or ``openvino``."""
    precision: str
    """``fp32`` or, with OpenVINO, ``bf16``."""
    workers: int
    """Processes, replicas or instances of the model."""
    threads: int
    """Threads of each engine run."""
    batch_size: int
    wait_ms: float
    """Maximum delay of a batch that is not full."""
    variant: str
    """Name of an alternative implementation from the server's documentation, or empty."""


def read_settings() -> Settings:
    """Read the settings from the environment."""
    values = {name: os.environ[f"SERVER_{name.upper()}"] for name in Settings._fields}
    return Settings(
        Path(values["model"]),
        int(values["port"]),
        values["backend"],
        values["precision"],
        int(values["workers"]),
        int(values["threads"]),
        int(values["batch_size"]),
        float(values["wait_ms"]),
        values["variant"],
    )


class Detector(Preparer):
    """Preprocessing, inference and decoding of boxes.

    ``concurrency``: number of threads that may call :meth:`run` at the same time.
    """

    def __init__(self, settings: Settings, concurrency: int = 1) -> None:
        super().__init__(settings.model)
        manifest = json.loads((settings.model / "model.json").read_text())
        self.classes = manifest["classes"]
        self.stride = manifest["decoder"]["output_stride"]
        self.threshold = manifest["decoder"]["score_threshold"]
        model = settings.model / manifest["artifacts"][0]["file"]
        shape = (self.height, self.width, 3)
        self.engine = self._open_engine(model, shape, settings, concurrency)
        for size in (*BATCH_SIZES, 8):  # warm-up: lets the memory arena grow
            self.engine.run(np.zeros((size, *shape), np.uint8))

    def _open_engine(
        self, model: Path, shape: tuple[int, int, int], settings: Settings, concurrency: int
    ) -> Engine:
        if settings.backend == "openvino":
            return OpenVinoEngine(
                model, OUTPUTS, shape, settings.precision, settings.threads, concurrency
            )
        return OnnxRuntimeEngine(model, OUTPUTS, settings.threads)

    def run(self, batch: list[Prepared]) -> list[dict[str, Any]]:
        """Run one batch; return one response document per image."""
        pixels = np.stack([prepared.pixels for prepared in batch])
        rows = self.engine.run(pixels)
        return [
            self._document(prepared, *(values[index] for values in rows))
            for index, prepared in enumerate(batch)
        ]

    def _document(
        self,
        prepared: Prepared,
        scores: np.ndarray,
        class_ids: np.ndarray,
        centers: np.ndarray,
        sizes: np.ndarray,
    ) -> dict[str, Any]:
        kept = scores >= self.threshold
        centers, half = centers[kept] * self.stride, sizes[kept] * (self.stride / 2)
        corners = np.concatenate([centers - half, centers + half], axis=1).astype(np.float64)
        shift = np.array([prepared.shift_x, prepared.shift_y] * 2)
        boxes = np.round((corners - shift) / prepared.scale, 3).tolist()
        rounded_scores = np.round(scores[kept].astype(np.float64), 6)
        columns = (class_ids[kept].tolist(), rounded_scores.tolist(), boxes)
        return {
            "detections": [
                {
                    "class_id": class_id,
                    "class_name": self.classes[class_id],
                    "score": score,
                    "bbox": box,
                }
                for class_id, score, box in zip(*columns, strict=True)
            ]
        }
