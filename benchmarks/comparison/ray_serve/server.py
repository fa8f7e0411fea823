"""Ray Serve: replicas with ``@serve.batch``; images are decoded in threads of the replica."""

import asyncio
from typing import Any

import ray
from detector import Detector, Prepared, read_settings
from ray import serve
from starlette.requests import Request

settings = read_settings()


@serve.deployment(
    num_replicas=settings.workers,
    max_ongoing_requests=64,
    ray_actor_options={"num_cpus": 2 / settings.workers},
)
class Detect:
    def __init__(self) -> None:
        self.detector = Detector(settings)

    @serve.batch(max_batch_size=settings.batch_size, batch_wait_timeout_s=settings.wait_ms / 1000)
    async def detect(self, batch: list[Prepared]) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self.detector.run, batch)

    async def __call__(self, request: Request) -> dict[str, Any]:
        body = await request.body()
        return await self.detect(await asyncio.to_thread(self.detector.prepare, body))


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": settings.port})
    serve.run(Detect.bind(), route_prefix="/detect", blocking=True)
