"""The service under load, scraped by a real Prometheus with the configuration of docker/."""

import ast
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.dashboard import Query, queries, variables
from support.tools import find_tool

PATIENCE_S = 60
RATE_INTERVAL = "10s"
OVERRIDES = {
    "scrape_interval: 5s": "scrape_interval: 1s",
    "evaluation_interval: 15s": "evaluation_interval: 1s",
}
SERVICE_SETTINGS = {
    "CENTERNET_DEFAULT_MODEL": "blood_cells",
    "CENTERNET_BACKEND": "onnxruntime-cpu",
    "CENTERNET_MAX_QUEUE_SIZE": "8",
    "CENTERNET_SELF_TEST_INTERVAL_S": "1",
}
CLIENTS = 12


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_for(condition: str, is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline, f"timed out: {condition}"
        time.sleep(0.2)


def is_ok(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def running(command: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("CENTERNET_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**inherited, **environment}
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(40)
            finally:
                process.kill()
                process.wait()


class Load:
    """Overload from valid, invalid and disconnecting clients, until it is stopped."""

    def __init__(self, port: int, image: bytes) -> None:
        self._port = port
        self._image = image
        self._stopped = threading.Event()
        self.failures: list[Exception] = []
        kinds = [self._send_image] * CLIENTS + [self._send_invalid, self._disconnect]
        self._threads = [threading.Thread(target=self._repeat, args=(kind,)) for kind in kinds]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def _repeat(self, kind: Callable[[httpx.Client], None]) -> None:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=30) as client:
                while not self._stopped.is_set():
                    kind(client)
        except Exception as error:  # reported by the fixture
            self.failures.append(error)

    def _send_image(self, client: httpx.Client) -> None:
        response = client.post("/detect", content=self._image)
        assert response.status_code in (200, 429), response.text
        if response.status_code == 429:
            self._stopped.wait(0.02)

    def _send_invalid(self, client: httpx.Client) -> None:
        assert client.post("/detect", content=b"not an image").status_code in (400, 415, 429)
        assert client.post("/models/none/detect", content=self._image).status_code == 404
        self._stopped.wait(0.2)

    def _disconnect(self, _: httpx.Client) -> None:
        head = f"POST /detect HTTP/1.1\r\nHost: here\r\nContent-Length: {len(self._image)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self._port)) as connection:
            connection.sendall(head.encode() + self._image)
            self._stopped.wait(0.03)


class Prometheus:
    """A client of the HTTP API of Prometheus."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def _get(self, path: str, **parameters: str) -> Any:
        body = self._client.get(f"/api/v1{path}", params=parameters).json()
        assert body["status"] == "success", body
        return body["data"]

    def values(self, expression: str) -> list[float]:
        """Return the current values of the expression, without NaN."""
        result = self._get("/query", query=expression)["result"]
        values = [float(sample["value"][1]) for sample in result]
        return [value for value in values if not math.isnan(value)]

    def label_values(self, label: str, series: str) -> list[str]:
        values: list[str] = self._get(f"/label/{label}/values", **{"match[]": series})
        return values

    def alert_states(self) -> dict[str, str]:
        """Return the state by rule; fail if the evaluation of a rule failed."""
        rules = [rule for group in self._get("/rules")["groups"] for rule in group["rules"]]
        for rule in rules:
            assert rule["health"] in ("ok", "unknown"), rule
        return {rule["name"]: rule["state"] for rule in rules}


class Monitored:
    """A running service, the load on it, and the Prometheus that scrapes it."""

    def __init__(
        self, service: subprocess.Popen[bytes], port: int, prometheus: Prometheus, load: Load
    ) -> None:
        self.service = service
        self.port = port
        self.prometheus = prometheus
        self.load = load


@pytest.fixture(scope="module")
def monitored(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    program = find_tool("prometheus", "Debian: apt-get install prometheus")
    directory = tmp_path_factory.mktemp("prometheus")
    port, prometheus_port = free_port(), free_port()
    config = (project / "docker/prometheus/prometheus.yml").read_text()
    for old, new in {**OVERRIDES, "centernet:8000": f"127.0.0.1:{port}"}.items():
        assert config.count(old) == 1, old
        config = config.replace(old, new)
    (directory / "prometheus.yml").write_text(config)
    (directory / "alerts.yml").write_bytes((project / "docker/prometheus/alerts.yml").read_bytes())
    image = (project / "docs/samples/blood_smear_1.jpg").read_bytes()
    models = directory / "models"
    shutil.copytree(project / "models", models)
    shutil.copytree(models / "blood_cells", models / "shadow")
    newer = models / "shadow" / "model.json"
    manifest = json.loads(newer.read_text())
    shadow = f"blood_cells:{manifest['version']}=1"
    newer.write_text(json.dumps(manifest | {"version": f"{manifest['version']}.1"}))
    with ExitStack() as stack:
        service = stack.enter_context(
            running(
                [sys.executable, "-c", "from service.cli import main; main()"],
                directory / "service.log",
                **SERVICE_SETTINGS,
                CENTERNET_PORT=str(port),
                CENTERNET_MODELS=str(models),
                CENTERNET_SHADOW=shadow,
                PYTHONPATH=str(project),
            )
        )
        stack.enter_context(
            running(
                [
                    program,
                    f"--config.file={directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={directory / 'data'}",
                    f"--web.listen-address=127.0.0.1:{prometheus_port}",
                ],
                directory / "prometheus.log",
            )
        )

        def is_ready() -> bool:
            assert service.poll() is None, (directory / "service.log").read_text()
            return is_ok(f"http://127.0.0.1:{port}/readyz")

        wait_for("the service is ready", is_ready)
        url = f"http://127.0.0.1:{prometheus_port}"
        wait_for("Prometheus is ready", lambda: is_ok(f"{url}/-/ready"))
        client = stack.enter_context(httpx.Client(base_url=url, timeout=30))
        # Shadows run while there is free capacity, which the load leaves none of.
        wait_for("a shadow run", lambda: has_shadow_run(port, image))
        load = stack.enter_context(Load(port, image))
        yield Monitored(service, port, Prometheus(client), load)
        assert not load.failures, load.failures


def has_shadow_run(port: int, image: bytes) -> bool:
    url = f"http://127.0.0.1:{port}"
    httpx.post(f"{url}/detect", content=image, timeout=30)
    metrics = httpx.get(f"{url}/metrics", timeout=30).text
    return re.search(r'shadow_runs_total{.*result="compared".*} [1-9]', metrics) is not None


def query_id(query: Query) -> str:
    return re.sub(r"\W+", "_", f"{query.panel} {query.expression}")[:70]


@pytest.mark.parametrize(
    "query", [query for query in queries(RATE_INTERVAL) if not query.needs_gpu], ids=query_id
)
def test_panel_queries_return_data(monitored: Monitored, query: Query) -> None:
    wait_for(query.expression, lambda: bool(monitored.prometheus.values(query.expression)))


@pytest.mark.parametrize(
    "expression",
    [
        'sum(centernet_request_errors_total{code="queue_full"})',
        'sum(centernet_request_errors_total{code=~"bad_image|unsupported_image"})',
        'sum(centernet_request_errors_total{code="unknown_model"})',
        'sum(centernet_cancelled_inputs_total{stage="queue"})',
        "sum(centernet_images_total)",
        'sum(centernet_self_test_runs_total{result="ok"})',
        "max(max_over_time(centernet_queue_oldest_age_seconds[1m]))",
        "max(max_over_time(centernet_queue_inputs[1m]))",
    ],
)
def test_metrics_reflect_the_load(monitored: Monitored, expression: str) -> None:
    wait_for(f"{expression} > 0", lambda: sum(monitored.prometheus.values(expression)) > 0)


def test_error_codes_of_alerts_are_initialized_at_zero(project: Path, monitored: Monitored) -> None:
    rules = (project / "docker/prometheus/alerts.yml").read_text()
    codes = {
        code for pattern in re.findall(r'code=~?"([a-z_|]+)"', rules) for code in pattern.split("|")
    }
    assert "engine_failed" in codes
    exported = monitored.prometheus.label_values("code", "centernet_request_errors_total")
    assert codes <= set(exported)


@pytest.mark.parametrize("name", variables())
def test_dashboard_variables_have_values(project: Path, monitored: Monitored, name: str) -> None:
    series, label = variables()[name]
    models = sorted(manifest.parent.name for manifest in project.glob("models/*/model.json"))
    expected = {"instance": [f"127.0.0.1:{monitored.port}"], "model": models}
    assert sorted(monitored.prometheus.label_values(label, series)) == expected[name]


def test_overload_activates_only_capacity_alerts(monitored: Monitored) -> None:
    states = monitored.prometheus.alert_states
    wait_for(
        "the rejection rate alert is active",
        lambda: states()["CenternetHighRejectionRate"] != "inactive",
    )
    faults = {
        *("CenternetDown", "CenternetNotReady", "CenternetEngineErrors"),
        *("CenternetInternalErrors", "CenternetSelfTestFailed", "CenternetMemoryGrowth"),
        *("CenternetGpuMetricsDown", "CenternetGpuMemoryNearLimit", "CenternetGpuUnderutilized"),
    }
    assert {states()[name] for name in faults} == {"inactive"}


def test_health_check_and_prometheus_detect_the_shutdown(
    project: Path, monitored: Monitored
) -> None:
    dockerfile = (project / "docker/Dockerfile").read_text()
    (check,) = re.findall(r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$", dockerfile, re.MULTILINE)
    _, *arguments = ast.literal_eval(check)
    command = [sys.executable, *arguments]
    environment = {**os.environ, "CENTERNET_PORT": str(monitored.port)}

    def health() -> int:
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode

    assert health() == 0
    monitored.load.stop()
    monitored.service.send_signal(signal.SIGTERM)
    assert monitored.service.wait(PATIENCE_S) in (0, -signal.SIGTERM)
    assert health() == 1
    states = monitored.prometheus.alert_states
    wait_for("the down alert is active", lambda: states()["CenternetDown"] != "inactive")
