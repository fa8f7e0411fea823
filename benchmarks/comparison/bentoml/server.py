"""BentoML: a batchable API with images as input and several workers.

Its adaptive batching determines the delay itself; ``wait_ms`` is the maximum latency.
"""

from typing import Any

import bentoml
from detector import Detector, read_settings
from PIL import Image

settings = read_settings()
batched = bentoml.api(
    batchable=True, max_batch_size=settings.batch_size, max_latency_ms=int(settings.wait_ms)
)


@bentoml.service(workers=settings.workers, traffic={"timeout": 60})
class Detect:
    def __init__(self) -> None:
        self.detector = Detector(settings)

    @batched
    def detect(self, images: list[Image.Image]) -> list[dict[str, Any]]:
        return self.detector.run([self.detector.warp(image) for image in images])
