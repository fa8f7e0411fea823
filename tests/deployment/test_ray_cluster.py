"""The Ray Serve application on a cluster of three nodes: `make test-ray`.

With HAProxy instead of Ray's proxy: `RAY_SERVE_ENABLE_HA_PROXY=1 make test-ray`.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from support.processes import free_port, serve_process
from support.serving import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]

os.environ |= {
    "RAY_AUTH_MODE": "disabled",  # on machines with a token, too
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
}
ray = pytest.importorskip("ray", reason="ray is not installed (make test-ray)")
serve = pytest.importorskip("ray.serve", reason="ray[serve] is not installed (make test-ray)")

CLIENTS = 4
STORE_BYTES = 80 * 2**20
REPEAT_S = 90
"""Seconds in which Ray must have replaced a replica, beside other load."""


class Cluster:
    """Three nodes in processes of this machine; replicas run on two of them, one on each."""

    def __init__(self, project: Path) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "dashboard_port": free_port()}
        self._cluster = RayCluster(
            initialize_head=True, head_node_args={**head, "include_dashboard": True}
        )
        self.dashboard = f"http://{self._cluster.webui_url}"
        self._environment = {
            "CENTERNET_MODELS": str(project / "models" / "blood_cells"),
            "CENTERNET_BACKEND": "onnxruntime-cpu",
            "CENTERNET_PRECISION": "fp32",
        }
        self.nodes = [self.add_node(), self.add_node()]
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="error")
        self._port = free_port()
        serve.start(
            proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": self._port}
        )

    def add_node(self) -> Any:
        return self._cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)

    def kill_node(self, node: Any) -> None:
        self._cluster.remove_node(node, allow_graceful=False)

    def deploy(self, name: str, settings: dict[str, str] | None = None, **options: Any) -> str:
        """Deploy an application, or update it, and return its URL; replicas have half a core."""
        from service.ray_serve.application import CenterNet

        variables = self._environment | (settings or {})
        actor = {"num_cpus": 0.5, "runtime_env": {"env_vars": variables}}
        options = {"num_replicas": 2, "max_replicas_per_node": 1} | options
        if "autoscaling_config" in options:
            del options["num_replicas"]
        deployment = CenterNet.options(ray_actor_options=actor, **options)
        serve.run(deployment.bind(), name=name, route_prefix=f"/{name}")
        url = f"http://127.0.0.1:{self._port}/{name}"
        wait_until(lambda: httpx.get(f"{url}/readyz", timeout=30).is_success, 30)
        return url

    def close(self) -> None:
        serve.shutdown()
        ray.shutdown()
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def cluster(project: Path) -> Iterator[Cluster]:
    cluster = Cluster(project)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def image(project: Path) -> bytes:
    return (project / "docs/samples/blood_smear_1.jpg").read_bytes()


@pytest.fixture(scope="module")
def cells(cluster: Cluster) -> str:
    """URL of an application with two replicas."""
    return cluster.deploy("cells")


def replica_processes(name: str) -> list[int]:
    """Return the processes of the replicas of an application."""
    title = f"ray::ServeReplica:{name}:CenterNet".encode()
    pids = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if (directory / "cmdline").read_bytes().startswith(title):
                pids.append(int(directory.name))
        except OSError:  # it has ended
            continue
    return pids


def running_replicas(name: str) -> int:
    (deployment,) = serve.status().applications[name].deployments.values()
    return int(deployment.replica_states.get("RUNNING", 0))


def metric(url: str, name: str, labels: str = "") -> float:
    """Return the sum of a metric over the replicas."""
    text = httpx.get(f"{url}/metrics", timeout=30).text
    values = re.findall(rf"^{name}{{(?=[^}}]*{labels})[^}}]*}} (\S+)$", text, re.M)
    return sum(map(float, values))


class Load:
    """Requests of several clients; each sends the next one when it has the response."""

    def __init__(self) -> None:
        self.statuses: list[int | str] = []
        self.seconds: list[float] = []
        self.stop = threading.Event()

    def run_client(self, url: str, image: bytes) -> None:
        with httpx.Client(timeout=100) as client:
            while not self.stop.is_set():
                began_at = time.monotonic()
                try:
                    status: int | str = client.post(f"{url}/detect", content=image).status_code
                except httpx.HTTPError as error:
                    status = type(error).__name__
                self.seconds.append(time.monotonic() - began_at)
                self.statuses.append(status)

    @property
    def failures(self) -> list[int | str]:
        return [status for status in self.statuses if status != 200]

    def wait_for(self, count: int) -> None:
        """Wait for further successful responses."""
        target = self.statuses.count(200) + count
        wait_until(lambda: self.statuses.count(200) >= target, REPEAT_S)


@contextmanager
def load(url: str, image: bytes, clients: int = CLIENTS) -> Iterator[Load]:
    running = Load()
    with ThreadPoolExecutor(clients) as threads:
        futures = [threads.submit(running.run_client, url, image) for _ in range(clients)]
        try:
            running.wait_for(10)
            yield running
        finally:
            running.stop.set()
    for future in futures:
        future.result()


def test_the_application_answers_as_one_process_does(cells: str, project: Path) -> None:
    images = sorted((project / "docs/samples").glob("blood_smear_*.jpg"))
    options = ("--models", project / "models/blood_cells", "--backend", "onnxruntime-cpu")
    program = "from service.cli import main; main()"
    with serve_process(program, *map(str, (*options, "--precision", "fp32"))) as server:
        server.wait_for("/readyz")
        for path in images:
            body = path.read_bytes()
            expected = server.client.post("/detect", content=body).json()
            for _ in range(3):  # either replica
                response = httpx.post(f"{cells}/detect", content=body, timeout=30)
                assert response.json()["detections"] == expected["detections"]
    assert httpx.get(f"{cells}/openapi.json", timeout=30).json()["servers"] == [{"url": "/cells"}]


def test_any_replica_returns_the_metrics_of_all(cells: str, image: bytes) -> None:
    series = "centernet_http_request_duration_seconds_count"
    before = metric(cells, series, 'route="/detect"')
    with ThreadPoolExecutor(8) as clients:
        posts = [
            clients.submit(httpx.post, f"{cells}/detect", content=image, timeout=30)
            for _ in range(40)
        ]
        assert {post.result().status_code for post in posts} == {200}
    for _ in range(4):
        assert metric(cells, series, 'route="/detect"') == before + 40
    text = httpx.get(f"{cells}/metrics", timeout=30).text
    counts = re.findall(rf'^{series}{{route="/detect",worker="(\w+)"}} (\S+)$', text, re.M)
    assert len(dict(counts)) == 2
    assert all(float(count) > 0 for _, count in counts)


def send(url: str, path: str, body: bytes, length: int) -> socket.socket:
    """Send a request with a body of ``length`` bytes, of which ``body`` is the first part."""
    address = httpx.URL(url)
    assert address.port is not None
    connection = socket.create_connection((address.host, address.port))
    head = f"POST {address.path}{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def test_a_client_that_disconnects_cancels_its_request(cells: str, image: bytes) -> None:
    errors = ("centernet_request_errors_total", 'code="client_disconnected"')
    before = metric(cells, *errors)
    with send(cells, "/detect", image, len(image) + 1):
        wait_until(lambda: metric(cells, "centernet_request_body_bytes") >= len(image), 30)
    wait_until(lambda: metric(cells, *errors) == before + 1, 30)
    path = "/detect?scales=0.8,0.9,1,1.1"
    with ExitStack() as connections:
        for _ in range(12):  # the last ones wait for seconds
            connections.enter_context(send(cells, path, image, len(image)))
        wait_until(lambda: metric(cells, "centernet_queue_inputs") >= 4)
    wait_until(lambda: metric(cells, "centernet_cancelled_inputs_total") >= 4)
    wait_until(lambda: metric(cells, "centernet_queue_inputs") == 0)
    assert metric(cells, *errors) >= before + 2


def test_errors_of_the_service_pass_the_proxy(cluster: Cluster, image: bytes) -> None:
    limits = {
        "CENTERNET_MAX_QUEUE_SIZE": "1",
        "CENTERNET_REQUEST_TIMEOUT_S": "0.005",
        "CENTERNET_BODY_TIMEOUT_S": "5",  # longer than any body of this test takes to arrive
        "CENTERNET_MAX_BODY_BYTES": str(len(image)),
    }
    url = cluster.deploy("limits", limits, num_replicas=1)
    with ThreadPoolExecutor(16) as clients:
        posts = [
            clients.submit(httpx.post, f"{url}/detect", content=image, timeout=30)
            for _ in range(64)
        ]
        responses = [post.result() for post in posts]
    assert {response.status_code for response in responses} == {429, 504}
    for response in responses:
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["x-request-id"] == response.json()["request_id"]
        assert response.status_code == 504 or int(response.headers["retry-after"]) >= 1
    with send(url, "/detect", b"", len(image) + 1) as connection:  # before the body is sent
        assert connection.recv(12) == b"HTTP/1.1 413"

    with send(url, "/detect", image[:1000], len(image)) as connection:
        assert connection.recv(12) == b"HTTP/1.1 408"
    serve.delete("limits")


def test_a_rolling_update_loses_no_request(cluster: Cluster, cells: str, image: bytes) -> None:
    before = set(replica_processes("cells"))
    with load(cells, image) as running:
        cluster.deploy("cells", {"CENTERNET_MAX_BATCH_SIZE": "2"})
        running.wait_for(20)
    assert running.failures == []
    assert len(before) == 2
    assert not before & set(replica_processes("cells"))


def check_losses(running: Load) -> None:
    """Check that at most the requests inside the dead replica failed, each with an error."""
    print(f"{len(running.failures)} of {len(running.statuses)} failed: {running.failures}")
    assert len(running.failures) <= CLIENTS, running.failures
    # HAProxy closes the connection of a request whose response it cannot complete.
    assert set(running.failures) <= {500, "RemoteProtocolError"}, running.failures
    assert max(running.seconds) < REPEAT_S


def test_a_killed_replica_loses_its_own_requests(cells: str, image: bytes) -> None:
    with load(cells, image) as running:
        before = set(replica_processes("cells"))
        os.kill(min(before), signal.SIGKILL)
        running.wait_for(50)
        wait_until(lambda: len(set(replica_processes("cells")) - before) == 1, REPEAT_S)
        wait_until(lambda: running_replicas("cells") == 2, REPEAT_S)
        running.wait_for(20)
    check_losses(running)


def test_a_killed_node_loses_its_own_requests(cluster: Cluster, cells: str, image: bytes) -> None:
    with load(cells, image) as running:
        before = set(replica_processes("cells"))
        cluster.kill_node(cluster.nodes.pop(0))
        running.wait_for(50)
        cluster.nodes.append(cluster.add_node())
        wait_until(lambda: len(set(replica_processes("cells")) - before) == 1, REPEAT_S)
        wait_until(lambda: running_replicas("cells") == 2, REPEAT_S)
        running.wait_for(20)
    check_losses(running)


def scaling(target_requests: int, target_age_s: float, downscale_s: float) -> dict[str, Any]:
    """Return the configuration of one or two replicas, which follow the load within seconds."""
    return {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": target_requests,
        "metrics_interval_s": 0.5,
        "look_back_period_s": 2,
        "upscale_delay_s": 1,
        "downscale_delay_s": downscale_s,
        "policy": {
            "policy_function": "service.ray_serve.autoscaling:QueueAgePolicy",
            "policy_kwargs": {"target_queue_age_s": target_age_s},
        },
    }


def test_the_number_of_replicas_follows_the_load(cluster: Cluster, image: bytes) -> None:
    serve.delete("cells")
    url = cluster.deploy("scaled", autoscaling_config=scaling(2, 1000, 3))
    assert running_replicas("scaled") == 1
    with load(url, image, 6) as running:
        wait_until(lambda: running_replicas("scaled") == 2, REPEAT_S)
        running.wait_for(50)
    assert running.failures == []
    wait_until(lambda: running_replicas("scaled") == 1, REPEAT_S)


def test_an_old_queue_adds_replicas(cluster: Cluster, image: bytes) -> None:
    one_image = {"CENTERNET_MAX_BATCH_SIZE": "1"}
    url = cluster.deploy("scaled", one_image, autoscaling_config=scaling(1000, 0.01, 600))
    assert running_replicas("scaled") == 1
    with load(url, image, 12) as running:
        wait_until(lambda: running_replicas("scaled") == 2, REPEAT_S)
    assert running.failures == []


def test_models_that_cannot_be_loaded_are_named_in_the_status(cluster: Cluster) -> None:
    missing = {"CENTERNET_MODELS": "/nonexistent"}
    with pytest.raises(RuntimeError):
        cluster.deploy("broken", missing, num_replicas=1, max_constructor_retry_count=1)
    (deployment,) = serve.status().applications["broken"].deployments.values()
    assert "/nonexistent" in deployment.message


def serve_command(cluster: Cluster, *arguments: str | Path) -> str:
    """Return the output of the command ``serve``."""
    program = (sys.executable, "-m", "ray.serve.scripts")
    command = [*program, *map(str, arguments), "--address", cluster.dashboard]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def test_the_file_is_deployed_and_updated(
    cluster: Cluster, project: Path, image: bytes, tmp_path: Path
) -> None:
    serve.shutdown()  # its port can only be set at its start
    port = free_port()
    config = yaml.safe_load((project / "deploy/ray/serve.yaml").read_text())
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    config["proxy_location"] = "HeadOnly"  # the nodes share a machine
    variables = [one["runtime_env"]["env_vars"] for one in config["applications"]]
    for one in variables:
        one["CENTERNET_MODELS"] = f"{project}{one['CENTERNET_MODELS']}"
    names = [one["name"] for one in config["applications"]]
    file = tmp_path / "serve.yaml"

    file.write_text(yaml.safe_dump(config))
    serve_command(cluster, "deploy", file)
    urls = [f"http://127.0.0.1:{port}/{name}" for name in names]
    wait_until(lambda: all(map(is_running, names)), REPEAT_S)
    for url in urls:
        response = httpx.post(f"{url}/detect", content=image, timeout=REPEAT_S)
        assert response.status_code == 200
        assert response.json()["model"]["name"] == url.rpartition("/")[2]

    before = {process for name in names for process in replica_processes(name)}
    assert len(before) == len(names)
    for one in variables:
        one["CENTERNET_MAX_BATCH_SIZE"] = "2"
    file.write_text(yaml.safe_dump(config))
    with load(urls[0], image) as running:
        serve_command(cluster, "deploy", file)
        wait_until(lambda: not before & set(replica_processes(names[0])), REPEAT_S)
        running.wait_for(20)
    assert running.failures == []
    wait_until(lambda: all(map(is_running, names)), REPEAT_S)
    for name in names:
        assert not before & set(replica_processes(name))
    status = yaml.safe_load(serve_command(cluster, "status"))
    assert {name: one["status"] for name, one in status["applications"].items()} == dict.fromkeys(
        names, "RUNNING"
    )


def is_running(name: str) -> bool:
    application = serve.status().applications.get(name)
    return application is not None and application.status == "RUNNING"
