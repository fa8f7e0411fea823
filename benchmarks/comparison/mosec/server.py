"""mosec: the variant ``staged`` has a preprocessing and an inference stage.

The variant ``single`` does both in one stage.
"""

import json
from typing import Any

from detector import Detector, Prepared, Preparer, read_settings
from mosec import Server, Worker

settings = read_settings()


class Prepare(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.preparer = Preparer(settings.model)

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> Prepared:
        return self.preparer.prepare(data)


class Detect(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.detector = Detector(settings)

    def forward(self, data: list[Prepared]) -> list[dict[str, Any]]:
        return self.detector.run(data)

    def serialize(self, data: dict[str, Any]) -> bytes:
        return json.dumps(data).encode()  # the default serializer indents


class PrepareAndDetect(Detect):
    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[dict[str, Any]]:
        return self.detector.run([self.detector.prepare(body) for body in data])


if __name__ == "__main__":
    server = Server()
    batching = {"max_batch_size": settings.batch_size, "max_wait_time": int(settings.wait_ms)}
    if settings.variant == "staged":
        server.append_worker(Prepare, num=2)
        server.append_worker(Detect, num=settings.workers, **batching)
    else:
        server.append_worker(PrepareAndDetect, num=settings.workers, **batching)
    server.run()
