"""``centernet-serve`` in a process of its own, over models that a test makes."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from support.serving import wait_until

TESTS = Path(__file__).parents[1]
SERVE = "from service.cli import main; main()"


def serving(load: str) -> str:
    """A program that serves what ``load`` gives; it knows settings, metrics, note and our tests."""
    return f"""
import threading, time
import service.cli
from support.serving import *
def load(settings, metrics, note):
{load}
service.cli.load_models = load
service.cli.main()
"""


class ServeProcess:
    """The process and a client for it."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.process = process
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)

    def status(self, path: str) -> int:
        """The status of a probe; 0 without an answer."""
        with suppress(httpx.TransportError):
            return self.client.get(path).status_code
        return 0

    def wait_for(self, path: str) -> None:
        """Wait until the probe succeeds."""
        wait_until(lambda: self.process.poll() is not None or self.status(path) == 200)
        assert self.process.poll() is None, "the service ended"


@contextmanager
def serve_process(program: str, *options: str, stderr: Any = None) -> Iterator[ServeProcess]:
    """Start ``program`` with these options of the service, and make sure that it ends."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    command = [sys.executable, "-c", program, "--port", str(port), *options]
    process = subprocess.Popen(command, env=environment, stderr=stderr)
    running = ServeProcess(process, port)
    try:
        with running.client:
            yield running
    finally:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()
