"""Log lines of requests in JSON and text; untrusted values cannot forge one."""

import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.images import encode, plain
from support.serving import (
    ColourEngine,
    RunningServer,
    one_model,
    run_server_with_loader,
    wait_until,
)

from service.model_loader import ModelLoader
from service.model_registry import ModelRegistry
from service.observability.logs import JsonFormatter, TextFormatter
from service.observability.metrics import Metrics
from service.settings import Settings

IMAGE = encode(plain(1, 2))
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


class LogLines:
    """Captured log lines in one of the formats."""

    def __init__(self, formatter: logging.Formatter) -> None:
        self.stream = io.StringIO()
        self.handler = logging.StreamHandler(self.stream)
        self.handler.setFormatter(formatter)

    @property
    def text(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    def requests(self, count: int = 1) -> list[dict[str, Any]]:
        """Wait for the lines of ``count`` requests, which are written after the responses."""
        wait_until(lambda: len(self._of_requests()) >= count)
        return self._of_requests()

    def _of_requests(self) -> list[dict[str, Any]]:
        whole = self.stream.getvalue().rpartition("\n")[0]
        lines = [json.loads(line) for line in whole.splitlines()]
        return [line for line in lines if line["logger"] == "service.access"]


@pytest.fixture
def capture_logs() -> Iterator[Callable[[logging.Formatter], LogLines]]:
    root, level, captured = logging.getLogger(), logging.getLogger().level, []

    def start(formatter: logging.Formatter) -> LogLines:
        lines = LogLines(formatter)
        captured.append(lines)
        root.addHandler(lines.handler)
        root.setLevel("INFO")
        return lines

    yield start
    root.setLevel(level)
    for lines in captured:
        root.removeHandler(lines.handler)


@pytest.fixture
def json_lines(capture_logs: Callable[[logging.Formatter], LogLines]) -> LogLines:
    return capture_logs(JsonFormatter())


def test_a_request_is_one_line_with_its_fields(server: RunningServer, json_lines: LogLines) -> None:
    server.client.post(
        "/detect?top_k=2",
        content=IMAGE,
        headers={"X-Request-ID": "order-66", "traceparent": f"00-{TRACE_ID}-{'1' * 16}-01"},
    )
    (line,) = json_lines.requests()
    stages = line.pop("stages_ms")
    assert list(stages) == ["read", "decode_queue", "prepare", "queue", "infer", "postprocess"]
    assert sum(stages.values()) <= line.pop("duration_ms")
    assert line.pop("time").endswith("Z")
    assert line == {
        **{"level": "info", "logger": "service.access", "message": "request"},
        **{"request_id": "order-66", "trace_id": TRACE_ID, "client": "127.0.0.1"},
        **{"method": "POST", "route": "/detect", "status": 200, "model": "painted"},
        **{"body_bytes": len(IMAGE), "batch_size": 1},
    }


def test_a_rejected_request_is_logged_with_its_error_code(
    server: RunningServer, json_lines: LogLines
) -> None:
    server.client.post("/detect", content=b"no image")
    (line,) = json_lines.requests()
    assert (line["status"], line["code"], line["body_bytes"]) == (415, "unsupported_image", 8)
    assert list(line["stages_ms"]) == ["read"]


def test_untrusted_values_are_escaped(
    server: RunningServer, capture_logs: Callable[[logging.Formatter], LogLines]
) -> None:
    text_lines, json_lines = capture_logs(TextFormatter()), capture_logs(JsonFormatter())
    path = '/a%0A{"level":"error"}%22 status=200%1B[31m%E2%80%A8?key=secret'
    server.client.get(path, headers={"X-Request-ID": 'a"b=c'})
    (line,) = json_lines.requests()
    assert line["path"] == '/a\n{"level":"error"}" status=200\x1b[31m\u2028'
    assert line["request_id"] == 'a"b=c'
    (text,) = [line for line in text_lines.text if "service.access" in line]
    assert text.isascii()
    assert text.isprintable()
    assert r'request_id="a\"b=c" ' in text
    assert r'path="/a\n{\"level\":\"error\"}\" status=200\u001b[31m\u2028"' in text
    assert "secret" not in text + json.dumps(line), "query strings are not logged"


def test_probes_are_logged_only_when_they_fail(
    start_server: Callable[..., RunningServer], json_lines: LogLines
) -> None:
    running = start_server(ColourEngine())
    for path in ("/livez", "/readyz", "/metrics"):
        assert running.client.get(path).status_code == 200
    assert json_lines.requests(0) == []
    running.state.draining.set()
    assert running.client.get("/readyz").status_code == 503
    (line,) = json_lines.requests()
    assert (line["level"], line["route"], line["code"]) == ("warning", "/readyz", "stopping")


def test_requests_before_the_models_are_loaded_are_no_warnings(json_lines: LogLines) -> None:
    settings, metrics, loaded = Settings(), Metrics(), threading.Event()

    def load(_: object) -> ModelRegistry:
        assert loaded.wait(20)
        return one_model(ColourEngine())(settings, metrics)

    with run_server_with_loader(ModelLoader(load), settings, metrics) as running:
        for path in ("/startupz", "/readyz", "/models"):
            assert running.client.get(path).status_code == 503
        (line,) = json_lines.requests()
        assert (line["level"], line["route"], line["code"]) == ("info", "/models", "not_ready")
        loaded.set()


def test_an_unexpected_exception_is_logged_with_its_traceback(
    start_server: Callable[..., RunningServer],
    json_lines: LogLines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("an error")

    running = start_server(ColourEngine())
    monkeypatch.setattr("service.http.routes.to_response", broken)
    response = running.client.post("/detect", content=IMAGE, headers={"X-Request-ID": "r1"})
    assert response.status_code == 500
    (line,) = json_lines.requests()
    lines = [json.loads(line) for line in json_lines.text]
    (error_line,) = [line for line in lines if "exception" in line]
    assert error_line["request_id"] == "r1"
    assert "ZeroDivisionError: an error" in error_line["exception"]
    assert (line["level"], line["status"], line["code"]) == ("warning", 500, "internal_error")


def test_api_keys_are_logged_by_line_number_only(
    start_server: Callable[..., RunningServer], json_lines: LogLines, tmp_path: Any
) -> None:
    key = "the-key-0123456789"
    (tmp_path / "keys").write_text(f"\n{key}\n")
    running = start_server(ColourEngine(), api_keys_file=tmp_path / "keys")
    running.client.get("/models", headers={"Authorization": f"Bearer {key}"})
    running.client.get("/models", headers={"Authorization": f"Bearer {key}x"})
    assert [line["client"] for line in json_lines.requests(2)] == ["key_2", "127.0.0.1"]
    assert key not in json_lines.stream.getvalue()


@pytest.mark.parametrize(
    ("level", "logged"),
    [("debug", ["info", "error"]), ("info", ["error"]), ("error", ["error"])],
)
def test_messages_of_uvicorn_are_logged_from_warning_on(level: str, logged: list[str]) -> None:
    code = (
        "import logging\n"
        "from service.observability.logs import set_up_logging\n"
        f"set_up_logging('json', '{level}')\n"
        "logging.getLogger('uvicorn.error').info('Waiting for application startup.')\n"
        "logging.getLogger('uvicorn.error').error('the address is in use')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert [json.loads(line)["level"] for line in result.stderr.splitlines()] == logged


def test_all_loggers_use_the_configured_format() -> None:
    code = (
        "import logging, warnings\n"
        "from service.observability.logs import set_up_logging\n"
        "set_up_logging('json', 'warning')\n"
        "logging.getLogger('uvicorn.error').warning('from %s', 'uvicorn')\n"
        "logging.getLogger('uvicorn.error').info('too quiet')\n"
        "warnings.warn('from a library')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    first, second = (json.loads(line) for line in result.stderr.splitlines())
    assert (first["logger"], first["message"]) == ("uvicorn.error", "from uvicorn")
    assert second["logger"] == "py.warnings"
    assert "from a library" in second["message"]


@pytest.mark.parametrize(
    ("log_format", "expected"), [("json", '"worker": 3'), ("text", "worker=3")]
)
def test_each_line_names_the_worker(log_format: str, expected: str) -> None:
    program = (
        "import logging\n"
        "from service.observability.logs import set_up_logging\n"
        f"set_up_logging({log_format!r}, 'info', 3)\n"
        "logging.getLogger('other').info('one')\n"
        "logging.getLogger('other').info('two', extra={'fields': {'a': 1}})\n"
    )
    command = [sys.executable, "-c", program]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    assert [expected in line for line in lines] == [True, True]
