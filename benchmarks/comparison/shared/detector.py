"""The detector that all third-party servers use; only the server around it differs.

It depends on Pillow, OpenCV, NumPy and ONNX Runtime and on nothing of this project. The steps are
those of the service: decode, warp (letterbox, as the package specifies), inference, and decoding of
peaks to boxes in image pixels.
"""

import io
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import onnxruntime
from PIL import Image

cv2.setNumThreads(1)


class Settings(NamedTuple):
    """Configuration of a server, from the environment variables ``SERVER_*``."""

    model: Path
    port: int
    workers: int
    """Processes, replicas or instances of the model."""
    threads: int
    """Intra-op threads of each ONNX Runtime session."""
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
        int(values["workers"]),
        int(values["threads"]),
        int(values["batch_size"]),
        float(values["wait_ms"]),
        values["variant"],
    )


class Prepared(NamedTuple):
    """A network input.

    ``pixels`` is uint8 (height, width, 3); ``scale`` and shift map image to input coordinates.
    """

    pixels: np.ndarray
    scale: float
    shift_x: float
    shift_y: float


class Preparer:
    """Preprocessing: encoded images to network inputs."""

    def __init__(self, model: Path) -> None:
        manifest = json.loads((model / "model.json").read_text())
        self.width = manifest["input"]["width_px"]
        self.height = manifest["input"]["height_px"]

    def prepare(self, body: bytes) -> Prepared:
        """Decode and warp one image."""
        return self.warp(Image.open(io.BytesIO(body)))

    def warp(self, image: Image.Image) -> Prepared:
        """Decode and warp an opened image."""
        pixels = np.asarray(image.convert("RGB"))
        height, width = pixels.shape[:2]
        scale = self.width / max(width, height)
        shift_x, shift_y = self.width / 2 - scale * width / 2, self.height / 2 - scale * height / 2
        matrix = np.array([[scale, 0, shift_x], [0, scale, shift_y]])
        canvas = cv2.warpAffine(pixels, matrix, (self.width, self.height), flags=cv2.INTER_LINEAR)
        return Prepared(canvas, scale, shift_x, shift_y)


class Detector(Preparer):
    """Preprocessing, inference and decoding of boxes."""

    def __init__(self, model: Path, threads: int) -> None:
        super().__init__(model)
        manifest = json.loads((model / "model.json").read_text())
        self.classes = manifest["classes"]
        self.stride = manifest["decoder"]["output_stride"]
        self.threshold = manifest["decoder"]["score_threshold"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = str(model / manifest["artifacts"][0]["file"])
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        for size in (1, 8):  # warm-up: lets the memory arena grow
            images = np.zeros((size, self.height, self.width, 3), np.uint8)
            self.session.run(None, {"images": images})

    def run(self, batch: list[Prepared]) -> list[dict[str, Any]]:
        """Run one batch; return one response document per image."""
        pixels = np.stack([prepared.pixels for prepared in batch])
        names = ["scores", "class_ids", "centers", "sizes"]
        rows = self.session.run(names, {"images": pixels})
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
