"""Clients of other inference servers, unchanged, in environments of their own: `make test-clients`.

The packages they need conflict with each other or with those of the service. Each has a file in
``requirements`` with the versions of its environment, and a program that calls it.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.connections import clean_environment, outside_calls, traced
from support.processes import ServeProcess, free_port, serve_process
from support.serving import wait_until

pytestmark = pytest.mark.clients

IMAGE = "docs/samples/blood_smear_1.jpg"
SIZE = (640, 480)
KEY = "clients-0123456789"
THRESHOLD = 0.5
ROUNDED = 0.001
"""Pixels: /detect rounds to three decimals."""
INTEGER = 0.5 + ROUNDED
"""Pixels: integers of coordinates that /detect rounds to three decimals."""


@pytest.fixture(scope="module")
def service(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServeProcess, str]]:
    """A service process with the bundled model ``blood_cells``, and its address for gRPC."""
    keys = tmp_path_factory.mktemp("service") / "keys"
    keys.write_text(KEY)
    grpc_port = str(free_port())
    options = ["--models", str(project / "models/blood_cells"), "--grpc-port", grpc_port]
    program = "from service.__main__ import main; main()"
    with serve_process(program, *options, "--api-keys-file", str(keys)) as running:
        wait_until(lambda: running.status("/readyz") == 200, seconds=60)
        running.client.headers["Authorization"] = f"Bearer {KEY}"
        yield running, f"127.0.0.1:{grpc_port}"


def detect(service: ServeProcess, image: Path, threshold: float) -> list[Any]:
    response = service.client.post(
        f"/detect?score_threshold={threshold}", content=image.read_bytes()
    )
    found: list[Any] = response.json()["detections"]
    return found


@pytest.mark.parametrize(
    ("client", "calls", "clipped", "tolerance_px"),
    [
        ("kserve", 3, False, ROUNDED),
        ("inference-sdk", 6, False, ROUNDED),
        ("deepstack-sdk", 2, True, INTEGER),
        ("label-studio-sdk", 1, True, ROUNDED),
    ],
)
def test_a_client_finds_the_detections_of_detect(
    service: tuple[ServeProcess, str],
    project: Path,
    tmp_path: Path,
    client: str,
    calls: int,
    clipped: bool,
    tolerance_px: float,
) -> None:
    running, grpc_address = service
    image = project / IMAGE
    expected = detect(running, image, THRESHOLD)
    assert 0 < len(expected) < len(detect(running, image, 0.3))

    trace = tmp_path / "strace.txt"
    python = project / ".venv-clients" / client / "bin/python"
    program = Path(__file__).with_name(f"detect_with_{client.replace('-', '_')}.py")
    url = str(running.client.base_url)
    arguments = [url, grpc_address, str(image), str(THRESHOLD), KEY]
    run = subprocess.run(
        traced(trace, [str(python), "-I", str(program), *arguments]),
        cwd=tmp_path,
        env=clean_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert outside_calls(trace) == []

    found = json.loads(run.stdout)
    assert len(found) == calls
    for call, detections in found.items():
        assert len(detections) == len(expected), call
        for one, other in zip(detections, expected, strict=True):
            assert one["class"] == other["class_name"], call
            assert one["score"] == pytest.approx(other["score"], abs=1e-6), call
            box = np.clip(other["bbox"], 0, [*SIZE, *SIZE]) if clipped else other["bbox"]
            assert one["bbox"] == pytest.approx(box, abs=tolerance_px), call
