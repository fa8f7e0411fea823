"""HTTP clients of several languages, connected to the service directly and through nginx.

Each client is a program that reads the path of a file from a line of its standard input, sends the
file, and prints the status of the response, or the error.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
BLOCK = 20
"""Requests without a pause between them."""
_START_S = 10.0


@dataclass(frozen=True)
class Client:
    """An HTTP client library or program.

    ``command``: the program that is given a URL and reads paths; for curl, which cannot read them
    one by one, None. ``needs``: the program or Python module that must be installed.
    """

    name: str
    needs: str
    command: Sequence[str] | None

    @property
    def is_installed(self) -> bool:
        """True if the client can run here."""
        return bool(shutil.which(self.needs) or importlib.util.find_spec(self.needs))


def _python(library: str) -> Client:
    program = str(FOLDER / "python_client.py")
    return Client(f"Python {library}", library, (sys.executable, program, library))


CLIENTS = (
    Client("Java HttpClient", "java", ("java", str(FOLDER / "Client.java"))),
    Client("Go net/http", "go", ("go", "run", str(FOLDER / "client.go"))),
    Client("Node fetch", "node", ("node", str(FOLDER / "client.mjs"))),
    Client("curl --http2", "curl", None),
    _python("requests"),
    _python("httpx"),
    _python("aiohttp"),
)


def send(
    client: Client, url: str, images: Sequence[Path], requests: int, pause_s: float
) -> list[str]:
    """Send the images in turn; return the status, or the error, of each request.

    There is a short pause between blocks of ``BLOCK`` requests, and one of ``pause_s`` after each
    quarter of the requests.
    """
    files = [images[i % len(images)] for i in range(requests)]
    blocks = [files[i : i + BLOCK] for i in range(0, requests, BLOCK)]
    long_pause_every = max(len(blocks) // 4, 1)
    outcomes: list[str] = []
    with _connected(client, url) as exchange:
        for number, block in enumerate(blocks, 1):
            outcomes += exchange(block)
            if number < len(blocks):
                time.sleep(0.02 if number % long_pause_every else pause_s)
    return outcomes


@contextmanager
def _connected(client: Client, url: str) -> Iterator[Callable[[Sequence[Path]], list[str]]]:
    if client.command is None:
        yield lambda block: _curl(url, block)
        return
    process = subprocess.Popen(
        [*client.command, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdin
    assert process.stdout
    reader, writer = process.stdout, process.stdin

    def exchange(block: Sequence[Path]) -> list[str]:
        outcomes = []
        for file in block:
            print(file, file=writer)
            outcomes.append(reader.readline().rstrip("\n") or "the client exited")
        return outcomes

    try:
        yield exchange
    finally:
        writer.close()
        process.wait(30)
        reader.close()


def _curl(url: str, block: Sequence[Path]) -> list[str]:
    """Send a block with one process, which uses one connection."""
    command = ["curl"]
    for file in block:
        command += ["--silent", "--show-error", "--http2", "--output", os.devnull]
        command += ["--write-out", "%{http_code} %{errormsg}\n"]
        command += ["--header", "Content-Type: image/jpeg", "--data-binary", f"@{file}", url]
        command.append("--next")
    run = subprocess.run(command[:-1], stdout=subprocess.PIPE, text=True, check=False)
    return [line.rstrip() for line in run.stdout.splitlines()]


@contextmanager
def run_nginx(
    service_ports: Sequence[int], folder: Path
) -> Iterator[tuple[int, "subprocess.Popen[bytes]"]]:
    """Run nginx in front of services on this machine; yield its port and its process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    text = (FOLDER / "nginx.conf").read_text()
    text = text.format(
        user="user root;" if os.geteuid() == 0 else "",  # the default user cannot read `folder`
        servers=" ".join(f"server 127.0.0.1:{service_port};" for service_port in service_ports),
        port=port,
    )
    (folder / "nginx.conf").write_text(text)
    process = subprocess.Popen(["nginx", "-e", "stderr", "-p", folder, "-c", "nginx.conf"])
    try:
        until = time.monotonic() + _START_S
        while time.monotonic() < until and process.poll() is None:
            with suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            time.sleep(0.02)
        else:
            raise RuntimeError("nginx did not start")
        yield port, process
    finally:
        process.terminate()
        process.wait()
