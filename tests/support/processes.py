"""``centernet-serve`` in a subprocess, with the bundled models or models defined by a test."""

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
    """Return a program that serves the models returned by the statements ``load``.

    They may use ``settings``, ``metrics``, ``note`` and everything in ``support.serving``.
    """
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
    """A running service process and an HTTP client connected to it."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.process = process
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)

    def status(self, path: str) -> int:
        """Return the status code of a probe, or 0 if there is no response."""
        with suppress(httpx.TransportError):
            return self.client.get(path).status_code
        return 0

    def wait_for(self, path: str) -> None:
        """Wait until the probe returns 200."""
        wait_until(lambda: self.process.poll() is not None or self.status(path) == 200)
        assert self.process.poll() is None, "the service exited"


def free_port() -> int:
    """Return a port that no process listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def serve_process(program: str, *options: str, stderr: Any = None) -> Iterator[ServeProcess]:
    """Start ``program`` with these command-line options; kill it at the end of the block."""
    port = free_port()
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
