"""The least that one process can be made of: no service, but what a service is measured against.

    python -m benchmarks.peers.least PACKAGE --port 8001 --batch-size 8

An event loop, a pool that decodes, one queue, a thread with a one-thread session for each core, and
the service's own decoding and warp. It trusts its clients, counts nothing, refuses nothing and has
no deadlines; an image that cannot be decoded is never answered. What it reaches of the ceiling is
what the machine, Python and the client on the same cores leave to anybody.
"""

import argparse
import asyncio
import json
import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httptools
import numpy as np
import uvloop
from numpy.typing import NDArray

from benchmarks.peers.ceiling import Pipeline
from service.imaging.geometry import ImageTransform


class Waiting(NamedTuple):
    """One image in the queue."""

    client: "Client"
    pixels: NDArray[np.uint8]
    placement: ImageTransform


class Least:
    """The queue, and everybody who works on it."""

    def __init__(self, package: Path, batch_size: int) -> None:
        cores = len(os.sched_getaffinity(0))
        self._pipelines = [Pipeline(package) for _ in range(cores)]
        self._batch_size = batch_size
        self._pool = ThreadPoolExecutor(cores)
        self._queue: list[Waiting] = []
        self._changed = threading.Condition()

    async def serve(self, port: int) -> None:
        """Serve until the process ends."""
        loop = asyncio.get_running_loop()
        for pipeline in self._pipelines:
            threading.Thread(target=self._run, args=(loop, pipeline), daemon=True).start()
        server = await loop.create_server(lambda: Client(self), "127.0.0.1", port)
        await server.serve_forever()

    def take(self, client: "Client", body: bytes) -> None:
        """Have an image decoded and queued."""
        self._pool.submit(self._prepare, client, body)

    def _prepare(self, client: "Client", body: bytes) -> None:
        waiting = Waiting(client, *self._pipelines[0].prepare(body))
        with self._changed:
            self._queue.append(waiting)
            self._changed.notify()

    def _run(self, loop: asyncio.AbstractEventLoop, pipeline: Pipeline) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    self._changed.wait()
                batch = self._queue[: self._batch_size]
                del self._queue[: self._batch_size]
                if self._queue:
                    self._changed.notify()
            outputs = pipeline.run(np.stack([waiting.pixels for waiting in batch]))
            loop.call_soon_threadsafe(self._answer, pipeline, batch, outputs)

    def _answer(
        self, pipeline: Pipeline, batch: Sequence[Waiting], outputs: dict[str, NDArray[Any]]
    ) -> None:
        for index, waiting in enumerate(batch):
            rows = {name: values[index] for name, values in outputs.items()}
            waiting.client.answer({"detections": pipeline.decode(rows, waiting.placement)})


class Client(asyncio.Protocol):
    """One connection, kept for as long as the client likes; one request at a time."""

    def __init__(self, least: Least) -> None:
        self._least = least
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Remember whom to answer."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse."""
        self._parser.feed_data(data)

    def on_body(self, part: bytes) -> None:
        """Called by the parser."""
        self._body.append(part)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        body, self._body = b"".join(self._body), []
        self._least.take(self, body)

    def answer(self, document: dict[str, Any]) -> None:
        """Send it."""
        body = json.dumps(document).encode()
        if not self._transport.is_closing():
            head = (
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            )
            self._transport.write(head % len(body) + body)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.least", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("package", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=8)
    given = parser.parse_args()
    # As in the service: a thread that wants Python's lock would otherwise ask for it after 5 ms.
    sys.setswitchinterval(0.0001)
    uvloop.run(Least(given.package, given.batch_size).serve(given.port))


if __name__ == "__main__":
    main()
