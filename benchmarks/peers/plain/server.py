"""A plain FastAPI loop: one picture per request, one engine run per picture.

``sessions_in_threads`` is one process whose pool of threads shares a session; ``processes`` is
uvicorn's ``--workers``. Both as FastAPI's pages "Concurrency" and "Server Workers" have it.
"""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from detector import Detector, read_settings

settings = read_settings()
detector = Detector(settings.model, settings.threads)
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
