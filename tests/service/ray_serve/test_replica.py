"""What a replica has without Ray: its ASGI application, settings and autoscaling policy."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from support.images import encode, plain
from support.serving import ColourEngine, GatedEngine, one_model, wait_until
from uvicorn.lifespan.on import LifespanOn

from service.app import create_app
from service.cpu_cores import available_cores, limit_cores
from service.engines import Engine
from service.model_loader import ModelLoader
from service.observability.metrics import Metrics
from service.ray_serve.asgi import replica_application
from service.ray_serve.autoscaling import QUEUE_AGE, QueueAgePolicy
from service.ray_serve.settings import SettingsError, read_settings
from service.settings import Settings

IMAGE = encode(plain(200, 40))
ANSWER_S = 20


class Replica:
    """The application of a replica, called as Ray does; ``sent``: the messages of a response."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self._app = app
        self.metrics = metrics
        self.sent: list[Any] = []
        self.body: asyncio.Queue[Any] = asyncio.Queue()

    def put(self, body: bytes, *, more: bool = False) -> None:
        """Let a part of the body arrive."""
        self.body.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def request(self, path: str = "/detect", **headers: str) -> "asyncio.Task[None]":
        """Begin a request under the route prefix /cells."""
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": f"/cells{path}",
            "root_path": "/cells",
            "query_string": b"",
            "headers": [
                (name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()
            ],
            "client": ("192.0.2.1", 1),
        }

        async def receive() -> Any:
            message = await self.body.get()
            if isinstance(message, Exception):
                raise message
            return message

        async def send(message: Any) -> None:
            self.sent.append(message)

        return asyncio.create_task(self._app(scope, receive, send))

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    def count(self, name: str, **labels: str) -> float:
        """Return a value of the metrics."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def run(
    test: Callable[[Replica], Awaitable[None]], engine: Engine | None = None, **given: Any
) -> None:
    """Run a test with a replica whose models are loaded."""
    settings = Settings(**{"max_batch_size": 1} | given)
    metrics = Metrics("replica1")
    loader = ModelLoader(lambda _: one_model(engine or ColourEngine())(settings, metrics))

    async def run_replica() -> None:
        app = replica_application(create_app(loader, settings, metrics), settings)
        loader.load()
        lifespan = LifespanOn(uvicorn.Config(app, lifespan="on", log_config=None))  # as Ray does
        await lifespan.startup()
        try:
            async with asyncio.timeout(ANSWER_S):
                await test(Replica(app, metrics))
        finally:
            await lifespan.shutdown()

    asyncio.run(run_replica())


def test_a_request_is_answered_with_the_headers_of_the_service_but_one_request_id() -> None:
    async def test(replica: Replica) -> None:
        replica.put(IMAGE)
        await replica.request()
        assert replica.status == 200
        assert replica.headers["x-batch-size"] == "1"
        assert "x-request-id" not in replica.headers  # the HTTP server of Ray adds it

    run(test)


@pytest.mark.parametrize("announced", [True, False])
def test_a_large_body_is_refused_before_it_has_arrived(announced: bool) -> None:
    async def test(replica: Replica) -> None:
        if announced:
            await replica.request(content_length="4097")
        else:
            for _ in range(2):
                replica.put(bytes(4096), more=True)
            await replica.request()
        assert replica.status == 413

    run(test, max_body_bytes=4096)


def test_a_body_that_does_not_arrive_in_time_is_refused() -> None:
    async def test(replica: Replica) -> None:
        replica.put(IMAGE[:100], more=True)
        await replica.request()
        assert replica.status == 408

    run(test, body_timeout_s=0.05)


def test_a_request_that_exceeds_its_time_is_answered_504() -> None:
    engine = GatedEngine()

    async def test(replica: Replica) -> None:
        replica.put(IMAGE)
        await replica.request()
        assert replica.status == 504
        engine.gate.set()

    run(test, engine, request_timeout_s=0.2)


def test_a_full_queue_is_answered_429_with_a_time() -> None:
    engine = GatedEngine()

    async def test(replica: Replica) -> None:
        replica.put(IMAGE)
        first = replica.request()
        await asyncio.to_thread(engine.entered.acquire)
        await replica.request()
        assert replica.status == 429
        assert int(replica.headers["retry-after"]) >= 1
        engine.gate.set()
        await first

    run(test, engine, max_queue_size=1)


@pytest.mark.parametrize("cancellations", [1, 2])
@pytest.mark.parametrize("stage", ["body", "engine"])
def test_a_task_that_ray_cancels_is_a_disconnected_client(stage: str, cancellations: int) -> None:
    engine = GatedEngine()

    async def test(replica: Replica) -> None:
        replica.put(IMAGE, more=stage == "body")
        request = replica.request()
        if stage == "engine":
            await asyncio.to_thread(engine.entered.acquire)
        else:
            await asyncio.to_thread(wait_until, replica.body.empty)
        for _ in range(cancellations):
            request.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await request
        engine.gate.set()
        errors = replica.metrics.errors.labels("client_disconnected")
        await asyncio.to_thread(wait_until, lambda: errors._value.get() == 1)
        assert replica.count("centernet_request_errors_total", code="client_disconnected") == 1
        assert replica.count("centernet_request_errors_total", code="stopping") == 0
        assert replica.count("centernet_queue_inputs", model="painted", version="1") == 0

    run(test, engine)


def test_a_call_to_the_proxy_that_fails_is_a_disconnected_client() -> None:
    async def test(replica: Replica) -> None:
        replica.put(IMAGE[:100], more=True)
        replica.body.put_nowait(RuntimeError("the task was cancelled"))
        await replica.request()
        assert replica.count("centernet_request_errors_total", code="client_disconnected") == 1
        assert replica.count("centernet_request_errors_total", code="internal_error") == 0

    run(test)


def test_addresses_of_clients_are_those_that_a_trusted_proxy_names() -> None:
    async def test(replica: Replica) -> None:
        statuses = []
        for client in ("198.51.100.1", "198.51.100.2", "198.51.100.1"):
            replica.sent.clear()
            replica.put(IMAGE)
            await replica.request(x_forwarded_for=client)
            statuses.append(replica.status)
        assert statuses == [200, 200, 429]

    limits: dict[str, Any] = {"rate_limit_per_s": 0.001, "rate_limit_burst": 1}
    run(test, **limits, trusted_proxies=("192.0.2.0/24",))


def test_the_age_of_the_queue_is_reported() -> None:
    engine = GatedEngine()

    async def test(replica: Replica) -> None:
        assert replica.metrics.queue_age_s() == 0
        requests = []
        for _ in range(3):
            replica.put(IMAGE)
            requests.append(replica.request())
        await asyncio.to_thread(wait_until, lambda: replica.metrics.queue_age_s() > 0.05)
        engine.gate.set()
        await asyncio.gather(*requests)
        assert replica.metrics.queue_age_s() == 0

    run(test, engine)


def test_settings_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CENTERNET_MAX_QUEUE_SIZE", "7")
    monkeypatch.setenv("CENTERNET_MODEL_CONTROL", "poll")
    monkeypatch.setenv("CENTERNET_HOST", "0.0.0.0")  # as in the image
    assert read_settings().max_queue_size == 7


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("KEEP_ALIVE_S", "9", "has no effect in Ray Serve.*http_options.keep_alive_timeout_s"),
        ("WORKERS", "2", "num_replicas"),
        ("ROOT_PATH", "/vision", "route_prefix"),
        ("GRPC_PORT", "9001", "grpc_port cannot be used"),
        ("MODEL_CONTROL", "explicit,poll", "received explicit.*accepted is poll"),
        ("MAX_QUEUE_SIZE", "many", "max_queue_size: Input should be a valid integer"),
        ("UNKNOWN", "1", "unknown variables in the environment: CENTERNET_UNKNOWN"),
    ],
)
def test_settings_that_a_replica_cannot_apply_are_refused(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"CENTERNET_{name}", value)
    with pytest.raises(SettingsError, match=message):
        read_settings()


def test_the_cores_that_ray_assigns_limit_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cpu_cores._limit", 1.0)  # restored at the end
    limit_cores(0.5)
    assert available_cores() == 1
    assert Settings().image_threads == 1


@pytest.mark.parametrize(
    ("requests", "ages", "replicas"),
    [
        (0, [0.0, 0.0], 0),
        (12, [0.0, 0.0], 3),
        (4, [0.1, 0.3], 1),  # the mean is the target
        (0, [0.15, 0.15], 0),
        (4, [0.3, 0.3], 3),
        (4, [9.0, 9.0], 4),  # at most twice as many at a time
        (40, [0.3, 0.3], 10),
        (12, [], 3),
    ],
)
def test_the_policy_scales_on_requests_and_on_the_age_of_the_queue(
    requests: float, ages: list[float], replicas: float
) -> None:
    context: Any = SimpleNamespace(
        total_num_requests=requests,
        current_num_replicas=2,
        aggregated_metrics={QUEUE_AGE: dict(enumerate(ages))} if ages else None,
        config=SimpleNamespace(get_target_ongoing_requests=lambda: 4),
    )
    assert QueueAgePolicy(target_queue_age_s=0.2)(context) == (pytest.approx(replicas), {})


def test_the_target_of_the_policy_must_be_positive() -> None:
    with pytest.raises(ValueError, match="target_queue_age_s: received 0"):
        QueueAgePolicy(0)
