"""Plain FastAPI: one inference run per request, without batching.

Inference runs in FastAPI's thread pool with one shared engine; workers are those of uvicorn.
"""

import os
from typing import Any

from detector import Detector, read_settings
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

settings = read_settings()
runs = settings.workers * settings.threads
detector = Detector(settings, concurrency=max(1, len(os.sched_getaffinity(0)) // runs))
app = FastAPI()


def detect_in(body: bytes) -> dict[str, Any]:
    return detector.run([detector.prepare(body)])[0]


@app.post("/detect")
async def detect(request: Request) -> dict[str, Any]:
    return await run_in_threadpool(detect_in, await request.body())


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(
        "server:app",
        port=settings.port,
        workers=settings.workers,
        access_log=False,
        log_level="warning",
    )
