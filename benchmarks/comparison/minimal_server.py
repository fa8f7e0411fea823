"""The smallest possible single-process server, as a reference point for real servers.

    python -m benchmarks.comparison.minimal_server PACKAGE --port 8001 --engine openvino-bf16

It consists of an event loop, a thread pool for image decoding, one queue, and per core one thread
that runs batches on one core; decoding, warp and engine are those of the service. It has no
limits, deadlines, metrics or error handling: a request with an invalid image gets no response. The
fraction of the throughput ceiling that it reaches shows what the machine, Python and a load
generator on the same cores allow.
"""

import argparse
import asyncio
import json
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httptools
import numpy as np
import uvloop
from numpy.typing import NDArray

from benchmarks.comparison.ceiling import Pipeline
from benchmarks.cpu import CPU_ENGINES, CpuEngine
from service.imaging.geometry import ImageTransform


class QueuedImage(NamedTuple):
    """A preprocessed image and the connection that waits for its detections."""

    connection: "Connection"
    pixels: NDArray[np.uint8]
    transform: ImageTransform


class MinimalServer:
    """The queue, the thread pool and the inference threads."""

    def __init__(self, package: Path, engine: CpuEngine, batch_size: int) -> None:
        self._pipeline = Pipeline(package, engine)
        self._batch_size = batch_size
        self._pool = ThreadPoolExecutor(self._pipeline.cores)
        self._queue: list[QueuedImage] = []
        self._changed = threading.Condition()

    async def serve(self, port: int) -> None:
        """Serve until the process is terminated."""
        loop = asyncio.get_running_loop()
        for _ in range(self._pipeline.cores):
            threading.Thread(target=self._run_batches, args=(loop,), daemon=True).start()
        server = await loop.create_server(lambda: Connection(self), "127.0.0.1", port)
        await server.serve_forever()

    def submit(self, connection: "Connection", body: bytes) -> None:
        """Decode an image in the thread pool and queue it."""
        self._pool.submit(self._prepare, connection, body)

    def _prepare(self, connection: "Connection", body: bytes) -> None:
        image = QueuedImage(connection, *self._pipeline.prepare(body))
        with self._changed:
            self._queue.append(image)
            self._changed.notify()

    def _run_batches(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    self._changed.wait()
                batch = self._queue[: self._batch_size]
                del self._queue[: self._batch_size]
                if self._queue:
                    self._changed.notify()
            outputs = self._pipeline.run(np.stack([image.pixels for image in batch]))
            loop.call_soon_threadsafe(self._respond, batch, outputs)

    def _respond(self, batch: Sequence[QueuedImage], outputs: Mapping[str, NDArray[Any]]) -> None:
        for index, image in enumerate(batch):
            rows = {name: values[index] for name, values in outputs.items()}
            image.connection.respond({"detections": self._pipeline.decode(rows, image.transform)})


class Connection(asyncio.Protocol):
    """A keep-alive HTTP connection with one request at a time."""

    def __init__(self, server: MinimalServer) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Store the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Feed the HTTP parser."""
        self._parser.feed_data(data)

    def on_body(self, part: bytes) -> None:
        """Collect the body (parser callback)."""
        self._body.append(part)

    def on_message_complete(self) -> None:
        """Submit the image (parser callback)."""
        body, self._body = b"".join(self._body), []
        self._server.submit(self, body)

    def respond(self, document: dict[str, Any]) -> None:
        """Send ``document`` as JSON."""
        body = json.dumps(document).encode()
        if not self._transport.is_closing():
            head = (
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            )
            self._transport.write(head % len(body) + body)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.comparison.minimal_server",
        description=__doc__.partition("\n")[0],
    )
    parser.add_argument("package", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", choices=CPU_ENGINES, required=True)
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args()
    # As in the service: by default a thread waits 5 ms before it requests the GIL.
    sys.setswitchinterval(0.0001)
    uvloop.run(
        MinimalServer(args.package, CPU_ENGINES[args.engine], args.batch_size).serve(args.port)
    )


if __name__ == "__main__":
    main()
