"""Questions of one process of the service to the others."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

_log = logging.getLogger(__name__)

METRICS, READINESS = b"metrics", b"readiness"
ANSWER_S = 2.0
"""Seconds after which a process that does not answer is left out."""


class Peers(Protocol):
    """The other processes that serve the same models."""

    async def serve(self, answers: Mapping[bytes, Callable[[], bytes]]) -> None:
        """Answer the others, until cancelled; ``answers``: a function for each question."""

    async def ask(self, question: bytes) -> list[bytes]:
        """Return the answers of all others that are ready."""


class WorkerPeers(Peers):
    """The other worker processes of the service, over Unix sockets.

    ``path``: the socket of this worker; the sockets of the others are in the same directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    async def serve(self, answers: Mapping[bytes, Callable[[], bytes]]) -> None:
        """Answer the others until cancelled; ``answers``: a function for each question."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                question = await reader.readline()
                writer.write(answers[question.strip()]())
                await writer.drain()
            writer.close()

        server = await asyncio.start_unix_server(answer, self._path)
        async with server:
            await server.serve_forever()

    async def ask(self, question: bytes) -> list[bytes]:
        """Return the answers of all other workers that are ready."""
        paths = [path for path in self._path.parent.glob("*.sock") if path != self._path]
        answers = await asyncio.gather(*(_ask(path, question) for path in sorted(paths)))
        return [answer for answer in answers if answer is not None]


async def _ask(path: Path, question: bytes) -> bytes | None:
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(question + b"\n")
                return await reader.read()
            finally:
                writer.close()
    except OSError as error:  # a worker that has just ended, or that does not answer
        _log.warning("no answer from worker %s: %s", path.stem, error or type(error).__name__)
        return None
