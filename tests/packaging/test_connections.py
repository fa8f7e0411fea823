"""No process opens a connection or looks up a name that the user has not asked for."""

import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from support.connections import (
    clean_environment,
    outside_calls,
    outside_calls_of,
    traced,
)
from support.images import encode, plain
from support.processes import free_port
from support.serving import wait_until

_LOOK_UP = "import socket\ntry: socket.getaddrinfo('example.org', 80)\nexcept OSError: pass"
_CONNECT = (
    "import socket\n"
    "try: socket.create_connection(('192.0.2.1', 80), timeout=0.1)\nexcept OSError: pass"
)


@pytest.mark.parametrize("program", [_CONNECT, _LOOK_UP], ids=["connection", "look-up"])
def test_the_trace_shows_connections(project: Path, tmp_path: Path, program: str) -> None:
    resolves = any(
        line.startswith("nameserver") for line in Path("/etc/resolv.conf").read_text().splitlines()
    )
    if program is _LOOK_UP and not resolves:
        pytest.skip("this machine has no name server")
    assert outside_calls_of([sys.executable, "-c", program], tmp_path, project)


def test_serving_opens_no_connection(project: Path, tmp_path: Path) -> None:
    output, port = tmp_path / "strace.txt", free_port()
    (tmp_path / "client").mkdir()
    command = [sys.executable, "-m", "service", "--models", "models", "--port", str(port)]
    command += ["--default-model", "blood_cells"]
    process = subprocess.Popen(
        traced(output, command), cwd=project, env=clean_environment(tmp_path)
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_until(lambda: _is_ready(client), seconds=120)
            assert client.post("/detect", content=encode(plain(9, 9))).status_code == 200
            program = "from client.detect import main; main()"
            command = [sys.executable, "-c", program, "docs/samples/blood_smear_1.jpg"]
            command += ["--url", str(client.base_url)]
            assert outside_calls_of(command, tmp_path / "client", project) == []
            assert "OpenVINO" in client.get("/models/blood_cells").json()["engine"]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        subprocess.run(["kill", f"-{signal.SIGTERM.value}", *children], check=True)
        process.wait(60)
    finally:
        process.kill()
    assert outside_calls(output) == []
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"strace.txt", "client"}, "nothing else in HOME"


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_evaluation_opens_no_connection(project: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "evaluation", "--package", "models/blood_cells"]
    command += ["--annotations", "docs/samples/blood_smears.json", "--images", "docs/samples"]
    command += ["--output", str(tmp_path / "report")]
    assert outside_calls_of(command, tmp_path, project) == []
