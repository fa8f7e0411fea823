"""SIGTERM under load, again and again: what becomes of every request.

    python -m benchmarks.endurance.drain --rounds 20

Half of the clients keep their connections, half take a new one each time; a quarter sends what is
refused at once, and so asks most often. All go on until nobody listens any more. Each request has
an id, which its answer must bring back. Prints Markdown; the exit status is 1 if a request that was
sent before the signal got no answer, any got two or somebody else's, or the process outlasted its
bound.
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

from benchmarks.endurance.report import Check, conclude
from benchmarks.endurance.service import IMAGES, Service, running

CLIENTS = 24
SHUTDOWN_S, BEYOND_S = 20, 5
"""The bound that the service is given, and what its last steps may take beyond."""
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_ID = re.compile(rb"x-request-id: (\S+)", re.IGNORECASE)


@dataclass
class Request:
    """One request; times of the monotonic clock, ``status`` None without an answer."""

    number: int
    sent_at: float = float("inf")
    status: int | None = None
    end: str = ""


class Client:
    """Sends images one after the other until it cannot connect."""

    def __init__(
        self, port: int, numbers: Iterator[int], keeps_connection: bool, sends_images: bool
    ) -> None:
        self._port = port
        self._numbers = numbers
        self._keeps_connection = keeps_connection
        self._sends_images = sends_images
        self.requests: list[Request] = []
        self.surplus_bytes = 0
        self.foreign = 0

    async def run(self) -> None:
        """Ask until nobody listens."""
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                return
            try:
                while await self._ask(reader, writer):
                    pass
                # What comes now was never asked for.
                async with asyncio.timeout(30):
                    self.surplus_bytes += len(await reader.read())
            except OSError:
                pass  # the connection has ended in another way
            finally:
                writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Ask once; say whether the connection can be used again."""
        request = Request(next(self._numbers))
        self.requests.append(request)
        image = IMAGES[request.number % len(IMAGES)]
        body = image.read_bytes() if self._sends_images else b"no image"
        connection = "" if self._keeps_connection else "Connection: close\r\n"
        head = (
            f"POST /detect HTTP/1.1\r\nHost: x\r\nX-Request-ID: {request.number}\r\n{connection}"
            f"Content-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            writer.transport.set_write_buffer_limits(0)
            writer.write(head.encode() + body)
            await writer.drain()  # the kernel has all of it
            request.sent_at = time.monotonic()
            answer = await reader.readuntil(b"\r\n\r\n")
            length, its_id = _LENGTH.search(answer), _ID.search(answer)
            assert length is not None
            await reader.readexactly(int(length[1]))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            request.end = type(error).__name__
            return False
        request.status = int(answer.split(b" ", 2)[1])
        self.foreign += its_id is None or its_id[1] != str(request.number).encode()
        return self._keeps_connection and b"connection: close" not in answer.lower()


async def signalled(service: Service, after_s: float) -> tuple[list[Client], float, float]:
    """Clients under way, the time of the signal, and the seconds until the process ended."""
    numbers = itertools.count()
    clients = [
        Client(service.port, numbers, index % 2 == 0, index % 8 > 1) for index in range(CLIENTS)
    ]
    asking = [asyncio.create_task(client.run()) for client in clients]
    await asyncio.sleep(after_s)
    signalled_at = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    try:
        await asyncio.to_thread(service.process.wait, SHUTDOWN_S + 2 * BEYOND_S)
        ended_s = time.monotonic() - signalled_at
    except subprocess.TimeoutExpired:
        ended_s = float("inf")
        service.process.kill()
    await asyncio.gather(*asking)
    return clients, signalled_at, ended_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    delays = random.Random(given.seed)
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    surplus_bytes, foreign, longest_s = 0, 0, 0.0
    print("| round | before: 200 | other | none | after: 200 | other | none | ended after s |")
    print("|---|---|---|---|---|---|---|---|")
    for number in range(1, given.rounds + 1):
        with running("--shutdown-timeout-s", str(SHUTDOWN_S)) as service:
            outcome = asyncio.run(signalled(service, delays.uniform(0.5, 2.5)))
        clients, signalled_at, ended_s = outcome
        counts = outcomes(clients, signalled_at)
        before += counts[0]
        after += counts[1]
        surplus_bytes += sum(client.surplus_bytes for client in clients)
        foreign += sum(client.foreign for client in clients)
        longest_s = max(longest_s, ended_s)
        cells = " | ".join(" | ".join(map(str, columns(count))) for count in counts)
        print(f"| {number} | {cells} | {ended_s:.2f} |", flush=True)
    print(f"\n{CLIENTS} clients\n\nsent before the signal: {dict(before)}; after: {dict(after)}")
    conclude(
        [
            Check("sent before the signal, not answered", columns(before)[2], most=0),
            Check("bytes that nobody had asked for", surplus_bytes, most=0),
            Check("answers to another request", foreign, most=0),
            Check("longest end, s", longest_s, most=SHUTDOWN_S + BEYOND_S),
        ]
    )


def outcomes(clients: list[Client], signalled_at: float) -> tuple[Counter[str], Counter[str]]:
    """Statuses, or else what ended the connection: of what was sent before the signal, and after.

    What could not even be sent counts as after.
    """
    counts: tuple[Counter[str], Counter[str]] = Counter(), Counter()
    for request in itertools.chain.from_iterable(client.requests for client in clients):
        counts[request.sent_at > signalled_at][str(request.status or request.end)] += 1
    return counts


def columns(count: Counter[str]) -> tuple[int, int, int]:
    """Answers 200, other answers, none."""
    answered = sum(number for status, number in count.items() if status.isdecimal())
    return count["200"], answered - count["200"], count.total() - answered


if __name__ == "__main__":
    main()
