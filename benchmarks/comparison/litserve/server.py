"""LitServe: a LitAPI with batching and several workers; images are sent as multipart forms."""

from typing import Any

import litserve
from detector import Detector, Prepared, read_settings
from fastapi import Request

settings = read_settings()


class DetectApi(litserve.LitAPI):
    def setup(self, device: str) -> None:
        del device
        self.detector = Detector(settings)

    def decode_request(self, request: Request) -> Prepared:
        return self.detector.prepare(request["image"].file.read())

    def batch(self, inputs: list[Prepared]) -> list[Prepared]:
        return inputs  # stacked by the detector

    def predict(self, x: Any) -> Any:
        # Without batching LitServe passes a single input instead of a list.
        return self.detector.run(x) if isinstance(x, list) else self.detector.run([x])[0]

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    api = DetectApi(max_batch_size=settings.batch_size, batch_timeout=settings.wait_ms / 1000)
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=settings.workers,
        fast_queue=settings.variant == "fast_queue",
    )
    server.run(
        host="127.0.0.1", port=settings.port, generate_client_file=False, log_level="warning"
    )
