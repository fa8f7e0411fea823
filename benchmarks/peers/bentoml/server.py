"""BentoML: a batchable API that takes pictures, with workers; adaptive batching has no fixed wait.

``composed`` separates decoding from the model, as the page "Model composition" has it.
"""

from typing import Any

import bentoml
from PIL import Image

from detector import Detector, Preparer, read_settings

settings = read_settings()
batched = bentoml.api(
    batchable=True, max_batch_size=settings.batch_size, max_latency_ms=int(settings.wait_ms)
)


@bentoml.service(workers=settings.workers, traffic={"timeout": 60})
class Detect:
    def __init__(self) -> None:
        self.detector = Detector(settings.model, settings.threads)

    @batched
    def detect(self, images: list[Image.Image]) -> list[dict[str, Any]]:
        return self.detector.run([self.detector.warp(image) for image in images])
