"""HTTP clients of several languages send requests with bodies, directly and through nginx."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.images import encode, plain, quadrants
from support.serving import ColourEngine, RunningServer

from benchmarks.http_clients import CLIENTS, Client, run_nginx, send

pytestmark = pytest.mark.slow

REQUESTS = 60
"""Per client; `python -m benchmarks.http_clients` sends 1,000."""

each_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
needs_nginx = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("small.jpg", "large.png")]
    paths[0].write_bytes(encode(quadrants(), "JPEG"))
    paths[1].write_bytes(encode(plain(1, 2, 3, (600, 600)), "PNG", compress_level=0))
    return paths


def detect_url(port: int | None) -> str:
    return f"http://127.0.0.1:{port}/detect"


def send_or_skip(client: Client, port: int | None, images: list[Path], pause_s: float) -> list[str]:
    if not client.is_installed:
        pytest.skip(f"{client.needs} is not installed")
    return send(client, detect_url(port), images, REQUESTS, pause_s)


@each_client
def test_no_request_fails(client: Client, server: RunningServer, images: list[Path]) -> None:
    port = server.client.base_url.port
    assert send_or_skip(client, port, images, pause_s=0.1) == ["200"] * REQUESTS


@needs_nginx
@each_client
def test_no_request_fails_behind_nginx(
    client: Client, server: RunningServer, images: list[Path], tmp_path: Path
) -> None:
    with run_nginx([server.client.base_url.port or 0], tmp_path) as (port, _):
        assert send_or_skip(client, port, images, pause_s=0.1) == ["200"] * REQUESTS


@needs_nginx
def test_every_body_over_the_limit_gets_413_behind_nginx(
    start_server: Callable[..., RunningServer], tmp_path: Path
) -> None:
    running = start_server(ColourEngine(), max_body_bytes=2**20)
    large = tmp_path / "large"
    large.write_bytes(bytes(4 * 2**20))
    client = next(client for client in CLIENTS if client.needs == "requests")
    with run_nginx([running.client.base_url.port or 0], tmp_path) as (port, _):
        assert send_or_skip(client, port, [large], pause_s=0.1) == ["413"] * REQUESTS


@each_client
def test_the_outcome_of_a_failed_request_is_reported(client: Client, images: list[Path]) -> None:
    outcomes = send_or_skip(client, 1, images[:1], pause_s=0)
    assert len(outcomes) == REQUESTS
    assert "200" not in outcomes
