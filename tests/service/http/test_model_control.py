"""Requests of the Open Inference Protocol that load and unload models."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import tritonclient.http as triton
from support.packages import IMAGE, change_file, write_version
from support.serving import RunningServer, run_server, wait_until

from service.model_registry import ModelRegistry, load_models
from service.model_repository import BAD_FILES, open_detector
from service.observability.metrics import Metrics
from service.settings import Settings


def load(settings: Settings, metrics: Metrics) -> ModelRegistry:
    return load_models(settings, metrics, lambda _: None)


@contextmanager
def serve(models: Path, **given: Any) -> Iterator[RunningServer]:
    fixed: dict[str, Any] = {"max_batch_size": 1, "backend": "onnxruntime-cpu"}
    settings = Settings(models=models, model_control=("explicit",), **fixed, **given)
    with run_server(load, settings) as running:
        yield running


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A directory with version 1 of the model ``cells``."""
    write_version(tmp_path / "models" / "one", "1")
    return tmp_path / "models"


def change(
    server: RunningServer, action: str, model: str = "cells", **given: Any
) -> httpx.Response:
    return server.client.post(f"/v2/repository/models/{model}/{action}", **given)


def assert_error(response: httpx.Response, status: int, code: str) -> str:
    body = response.json()
    assert (response.status_code, body["code"]) == (status, code), body
    assert body["error"] == body["detail"]
    error: str = body["error"]
    return error


def test_tritonclient_loads_and_unloads(models: Path) -> None:
    with serve(models, model_versions=2) as server:
        client = triton.InferenceServerClient(server.url.removeprefix("http://"))
        write_version(models / "two", "2", score=0.6)
        assert not client.is_model_ready("cells", "2")
        client.load_model("cells")
        assert client.is_model_ready("cells", "2")
        assert client.get_model_metadata("cells")["versions"] == ["2", "1"]
        assert client.get_model_metadata("cells", "1")["versions"] == ["2", "1"]
        stats = client.get_inference_statistics()["model_stats"]
        assert {(one["name"], one["version"]) for one in stats} == {
            (name, version) for name in ("cells", "cells.tensor") for version in ("1", "2")
        }
        assert server.client.post("/detect", content=IMAGE).json()["model"]["version"] == "2"
        client.unload_model("cells")
        assert not client.is_model_ready("cells")
        wait_until(
            lambda: (
                {
                    (one["version"], one["state"], one["reason"])
                    for one in client.get_model_repository_index()
                }
                == {("1", "UNAVAILABLE", "unloaded"), ("2", "UNAVAILABLE", "unloaded")}
            )
        )
        assert server.client.post("/v2/repository/index", json={"ready": True}).json() == []
        # Both forms of a model are loaded together.
        client.load_model("cells.tensor")
        assert client.is_model_ready("cells")
        client.close()


def test_errors_say_why_and_change_nothing(models: Path) -> None:
    with serve(models) as server:
        change_file(write_version(models / "two", "2"))
        error = assert_error(change(server, "load"), 503, "model_unavailable")
        assert BAD_FILES in error
        assert str(models) not in error
        assert_error(change(server, "load", "none"), 404, "unknown_model")
        assert_error(change(server, "unload", "none"), 404, "unknown_model")
        assert_error(change(server, "load", "..%2Fmodels%2Fone"), 404, "not_found")
        assert_error(change(server, "load", content=b"["), 400, "bad_json")
        assert_error(change(server, "load", content=bytes(5000)), 413, "body_too_large")
        assert_error(change(server, "load", json={"parameters": [1]}), 400, "bad_json")
        for action, parameters in (
            ("load", {"config": "{}"}),
            ("load", {"file:1/model.onnx": "AAAA"}),
            ("unload", {"config": "{}"}),
        ):
            response = change(server, action, json={"parameters": parameters})
            assert_error(response, 501, "unsupported_operation")
        assert server.client.post("/detect", content=IMAGE).json()["model"]["version"] == "1"


def test_a_key_is_needed_if_keys_are_configured(models: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("0123456789abcdef\n")
    with serve(models, api_keys_file=keys) as server:
        for action in ("load", "unload"):
            assert_error(change(server, action), 401, "unauthorized")
        headers = {"X-API-Key": "0123456789abcdef"}
        response = change(server, "unload", headers=headers)
        assert (response.status_code, response.json()) == (200, {})


@pytest.fixture
def began() -> threading.Event:
    return threading.Event()


@pytest.fixture
def may_end() -> threading.Event:
    return threading.Event()


@pytest.fixture
def slow_server(
    models: Path, monkeypatch: pytest.MonkeyPatch, began: threading.Event, may_end: threading.Event
) -> Iterator[RunningServer]:
    """A server that loads version 2 once ``may_end`` is set, and sets ``began`` before."""

    def open_slowly(*given: Any) -> Any:
        began.set()
        assert may_end.wait(20)
        return open_detector(*given)

    with serve(models) as server:
        monkeypatch.setattr("service.model_repository.open_detector", open_slowly)
        write_version(models / "two", "2", score=0.6)
        yield server
        may_end.set()


def test_loading_continues_if_the_client_disconnects(
    slow_server: RunningServer, began: threading.Event, may_end: threading.Event
) -> None:
    server = slow_server
    with ThreadPoolExecutor(1) as callers:
        with httpx.Client(base_url=server.url, timeout=0.5) as client:
            request = callers.submit(client.post, "/v2/repository/models/cells/load")
            assert began.wait(20)
            with pytest.raises(httpx.TimeoutException):
                request.result(20)
        may_end.set()
        wait_until(lambda: server.client.get("/models/cells").json()["version"] == "2")


def test_a_shutdown_does_not_wait_for_loading(
    slow_server: RunningServer, began: threading.Event
) -> None:
    with ThreadPoolExecutor(1) as callers:
        request = callers.submit(change, slow_server, "load")
        assert began.wait(20)
        slow_server.stop()
        assert_error(request.result(20), 503, "stopping")
