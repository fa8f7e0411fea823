"""Worker processes that share the port of gRPC, and the start of the service."""

import socket
import sys
from pathlib import Path

import grpc
import pytest
from support.processes import free_port, serve_process, serving
from support.serving import wait_until

from service.cli import main
from service.cpu_cores import available_cores
from service.grpc_port import reserved_grpc_port
from service.settings import Settings

from .test_access import ROUTE, infer_message

COLOUR = serving("    return one_model(ColourEngine())(settings, metrics)")


def start_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(("--port", "0", *arguments))
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_a_port_in_use_ends_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        error = start_error(capsys, "--grpc-port", str(port))
    assert f"grpc_port: 127.0.0.1:{port}: Address already in use" in error


def test_a_port_of_another_instance_is_noticed() -> None:
    """Although both listen with SO_REUSEPORT."""
    with reserved_grpc_port(Settings(grpc_port=0)) as settings:
        assert settings.grpc_port
        with (
            socket.create_server(("127.0.0.1", settings.grpc_port), reuse_port=True),
            pytest.raises(OSError, match="in use"),
            reserved_grpc_port(settings),
        ):
            pass


def test_the_extra_is_named_where_grpc_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bundled: Path
) -> None:
    for name in [name for name in sys.modules if name.startswith("service.grpc.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "grpc", None)
    error = start_error(capsys, "--grpc-port", "0", "--models", str(bundled))
    assert "grpc_port is set, but grpc is not installed" in error
    assert "centernet-serving[grpc]" in error


def test_service_links_of_kubernetes_are_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CENTERNET_GRPC_PORT", "tcp://10.0.0.1:8001")
    assert "a Service named 'centernet-grpc'" in start_error(capsys)


@pytest.mark.slow
@pytest.mark.skipif(available_cores() < 2, reason="each worker needs a core")
def test_workers_share_the_port() -> None:
    port = free_port()
    with serve_process(COLOUR, "--workers", "2", "--grpc-port", str(port)) as service:
        service.wait_for("/readyz")

        def workers_of(series: str) -> set[str]:
            """Return the workers that have such a series."""
            lines = service.client.get("/metrics").text.splitlines()
            found = [line for line in lines if series in line]
            return {line.partition('worker="')[2][0] for line in found}

        # The first worker listens before its models are loaded.
        wait_until(lambda: workers_of("centernet_model_ready{") == {"0", "1"}, 30)

        def workers() -> set[str]:
            """Return the workers that have answered an RPC, after one more."""
            with grpc.insecure_channel(
                f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]
            ) as channel:
                assert channel.unary_unary(ROUTE)(infer_message(), timeout=30)
            return workers_of(f'centernet_http_requests_total{{method="POST",route="{ROUTE}"')

        wait_until(lambda: workers() == {"0", "1"}, 30)
        service.process.terminate()
        service.process.wait(30)
        with socket.socket() as closed:
            assert closed.connect_ex(("127.0.0.1", port)) != 0
