"""What every peer does with an image; only the server around it differs.

Runs in the peers' environments: Pillow, OpenCV, NumPy and ONNX Runtime, nothing of this project.
The steps are those of the service: decode, warp (as the package says: letterbox), run, turn peaks
into boxes in the image.
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
    """One peer's tuning, from the variables ``PEER_*`` that the runner sets."""

    model: Path
    port: int
    workers: int
    """Processes, replicas or instances of the model."""
    threads: int
    """Threads of one ONNX Runtime session."""
    batch_size: int
    wait_ms: float
    """How long a batch that is not full waits for more."""
    variant: str
    """One of the shapes in which the peer's documentation writes such a service."""


def read_settings() -> Settings:
    """Read the variables."""
    given = {name: os.environ[f"PEER_{name.upper()}"] for name in Settings._fields}
    return Settings(
        Path(given["model"]),
        int(given["port"]),
        int(given["workers"]),
        int(given["threads"]),
        int(given["batch_size"]),
        float(given["wait_ms"]),
        given["variant"],
    )


class Prepared(NamedTuple):
    """``pixels``: uint8 (height, width, 3); ``scale`` and shift lead from the image to them."""

    pixels: np.ndarray
    scale: float
    shift_x: float
    shift_y: float


class Preparer:
    """Images to network inputs, without the network."""

    def __init__(self, model: Path) -> None:
        manifest = json.loads((model / "model.json").read_text())
        self.width = manifest["input"]["width_px"]
        self.height = manifest["input"]["height_px"]

    def prepare(self, body: bytes) -> Prepared:
        """Decode and warp one image."""
        return self.warp(Image.open(io.BytesIO(body)))

    def warp(self, image: Image.Image) -> Prepared:
        """Warp one opened image; decodes it."""
        pixels = np.asarray(image.convert("RGB"))
        height, width = pixels.shape[:2]
        scale = self.width / max(width, height)
        shift_x, shift_y = self.width / 2 - scale * width / 2, self.height / 2 - scale * height / 2
        matrix = np.array([[scale, 0, shift_x], [0, scale, shift_y]])
        canvas = cv2.warpAffine(pixels, matrix, (self.width, self.height), flags=cv2.INTER_LINEAR)
        return Prepared(canvas, scale, shift_x, shift_y)


class Detector(Preparer):
    """Images to boxes."""

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
        for size in (1, 8):  # the arena grows before the first request, not during it
            images = np.zeros((size, self.height, self.width, 3), np.uint8)
            self.session.run(None, {"images": images})

    def run(self, batch: list[Prepared]) -> list[dict[str, Any]]:
        """One engine run; one answer per image."""
        pixels = np.stack([prepared.pixels for prepared in batch])
        names = ["scores", "class_ids", "centers", "sizes"]
        rows = self.session.run(names, {"images": pixels})
        return [
            self._answer(prepared, *(values[index] for values in rows))
            for index, prepared in enumerate(batch)
        ]

    def _answer(
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
        found = zip(*columns, strict=True)
        return {
            "detections": [
                {
                    "class_id": class_id,
                    "class_name": self.classes[class_id],
                    "score": score,
                    "bbox": box,
                }
                for class_id, score, box in found
            ]
        }
