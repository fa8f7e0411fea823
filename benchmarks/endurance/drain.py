"""Graceful shutdown: send SIGTERM under load and account for every request.

    python -m benchmarks.endurance.drain --rounds 20

Half of the clients use keep-alive connections, the others a new connection per request; a quarter
sends invalid images, which are rejected immediately and therefore sent most often. Clients continue
until connections are refused. Each request has an id that its response must return. Prints
Markdown; the exit status is 1 if a request sent before the signal got no response, if a connection
got surplus bytes or the response to another request, or if the process exceeded its time limit.
"""

import argparse
import asyncio
import itertools
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.endurance.report import Check, exit_with_checks
from benchmarks.endurance.service import IMAGES, Service, run_service
from evaluation.report import markdown_row, markdown_table

CLIENTS = 24
SHUTDOWN_TIMEOUT_S, TOLERANCE_S = 20, 5
"""Shutdown timeout of the service, and additional time for its last steps."""
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_ID = re.compile(rb"x-request-id: (\S+)", re.IGNORECASE)


@dataclass
class Request:
    """A request; ``sent_at`` is monotonic time, ``status`` is None if there was no response."""

    number: int
    sent_at: float = float("inf")
    status: int | None = None
    error: str = ""
    """Name of the exception that ended the connection."""


class Client:
    """A client that sends requests one after the other until it cannot connect."""

    def __init__(
        self, port: int, numbers: Iterator[int], keep_alive: bool, valid_images: bool
    ) -> None:
        self._port = port
        self._numbers = numbers
        self._keep_alive = keep_alive
        self._valid_images = valid_images
        self.requests: list[Request] = []
        self.surplus_bytes = 0
        self.mismatched = 0

    async def run(self) -> None:
        """Send requests until connections are refused."""
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                return
            try:
                while await self._send(reader, writer):
                    pass
                # Bytes after the last response were not requested.
                async with asyncio.timeout(30):
                    self.surplus_bytes += len(await reader.read())
            except OSError:
                pass  # connection reset
            finally:
                writer.close()

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Send one request; return whether the connection can be reused."""
        request = Request(next(self._numbers))
        self.requests.append(request)
        image = IMAGES[request.number % len(IMAGES)]
        body = image.read_bytes() if self._valid_images else b"not an image"
        connection = "" if self._keep_alive else "Connection: close\r\n"
        head = (
            f"POST /detect HTTP/1.1\r\nHost: x\r\nX-Request-ID: {request.number}\r\n{connection}"
            f"Content-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            writer.transport.set_write_buffer_limits(0)
            writer.write(head.encode() + body)
            await writer.drain()  # all bytes are in the kernel's send buffer or sent
            request.sent_at = time.monotonic()
            head_bytes = await reader.readuntil(b"\r\n\r\n")
            length, response_id = _LENGTH.search(head_bytes), _ID.search(head_bytes)
            assert length is not None
            await reader.readexactly(int(length[1]))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            request.error = type(error).__name__
            return False
        request.status = int(head_bytes.split(b" ", 2)[1])
        self.mismatched += response_id is None or response_id[1] != str(request.number).encode()
        return self._keep_alive and b"connection: close" not in head_bytes.lower()


async def terminate_under_load(
    service: Service, after_s: float
) -> tuple[list[Client], float, float]:
    """Send SIGTERM while clients are active.

    Returns the clients, the time of the signal and the seconds until the process exited.
    """
    numbers = itertools.count()
    clients = [
        Client(service.port, numbers, index % 2 == 0, index % 8 > 1) for index in range(CLIENTS)
    ]
    tasks = [asyncio.create_task(client.run()) for client in clients]
    await asyncio.sleep(after_s)
    signalled_at = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    try:
        await asyncio.to_thread(service.process.wait, SHUTDOWN_TIMEOUT_S + 2 * TOLERANCE_S)
        exit_s = time.monotonic() - signalled_at
    except subprocess.TimeoutExpired:
        exit_s = float("inf")
        service.process.kill()
    await asyncio.gather(*tasks)
    return clients, signalled_at, exit_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    delays = random.Random(args.seed)
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    surplus_bytes, mismatched, longest_s = 0, 0, 0.0
    print(
        markdown_table(
            [
                *("round", "sent before: 200", "other", "no response"),
                *("sent after: 200", "other", "no response", "exit after s"),
            ]
        )
    )
    for number in range(1, args.rounds + 1):
        with run_service("--shutdown-timeout-s", str(SHUTDOWN_TIMEOUT_S)) as service:
            outcome = asyncio.run(terminate_under_load(service, delays.uniform(0.5, 2.5)))
        clients, signalled_at, exit_s = outcome
        counts = outcomes(clients, signalled_at)
        before += counts[0]
        after += counts[1]
        surplus_bytes += sum(client.surplus_bytes for client in clients)
        mismatched += sum(client.mismatched for client in clients)
        longest_s = max(longest_s, exit_s)
        cells = itertools.chain.from_iterable(map(summarize, counts))
        print(markdown_row([number, *cells, f"{exit_s:.2f}"]), flush=True)
    print(f"\n{CLIENTS} clients\n\nsent before the signal: {dict(before)}; after: {dict(after)}")
    exit_with_checks(
        [
            Check("sent before the signal, without a response", summarize(before)[2], max=0),
            Check("surplus bytes after responses", surplus_bytes, max=0),
            Check("responses to another request", mismatched, max=0),
            Check("longest shutdown, s", longest_s, max=SHUTDOWN_TIMEOUT_S + TOLERANCE_S),
        ]
    )


def outcomes(clients: list[Client], signalled_at: float) -> tuple[Counter[str], Counter[str]]:
    """Count statuses, or errors without a response, of requests sent before and after the signal.

    Requests that could not be sent count as after the signal.
    """
    counts: tuple[Counter[str], Counter[str]] = Counter(), Counter()
    for request in itertools.chain.from_iterable(client.requests for client in clients):
        counts[request.sent_at > signalled_at][str(request.status or request.error)] += 1
    return counts


def summarize(count: Counter[str]) -> tuple[int, int, int]:
    """Return the numbers of responses with 200, of other responses and of missing responses."""
    responses = sum(number for status, number in count.items() if status.isdecimal())
    return count["200"], responses - count["200"], count.total() - responses


if __name__ == "__main__":
    main()
