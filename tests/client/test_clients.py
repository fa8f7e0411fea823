"""Both clients against services that refuse, stop, restart and time out, on real sockets."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from support.fake_service import Reply, detected, fake_service, problem
from support.images import encode, plain
from support.processes import free_port
from support.serving import GatedEngine, RunningServer, wait_until

from client import (
    AsyncClient,
    Client,
    ClientError,
    ConnectionFailedError,
    DetectionResult,
    DetectOptions,
    ImageInputError,
    InvalidResponseError,
    ResponseError,
    ResponseTimeoutError,
    RetryPolicy,
    retries,
)
from client.images import ImageInput
from service.options import DetectParameters

Results = list[DetectionResult | ClientError]
DetectAll = Callable[..., Results]


def detect_sync(
    url: str, images: Sequence[ImageInput], policy: RetryPolicy, **options: Any
) -> Results:
    with Client(url, retry=policy) as client:
        return list(client.detect_many(images, **options))


def detect_async(
    url: str, images: Sequence[ImageInput], policy: RetryPolicy, **options: Any
) -> Results:
    async def run() -> Results:
        async with AsyncClient(url, retry=policy) as client:
            return [result async for result in client.detect_many(images, **options)]

    return asyncio.run(run())


@pytest.fixture(params=[detect_sync, detect_async], ids=["sync", "async"])
def detect_all(request: pytest.FixtureRequest) -> DetectAll:
    function: DetectAll = request.param
    return function


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_DELAY_S", 0.01)


IMAGES = [f"image {number}".encode() for number in range(40)]
POLICY = RetryPolicy(timeout_s=20, deadline_s=60, retries=5)


def echo(body: bytes) -> Reply:
    return detected(body.decode())


def names(results: Results) -> list[str]:
    """Return the class name of each result; all must be detections."""
    found = []
    for result in results:
        assert isinstance(result, DetectionResult), result
        found.append(result.detections[0].class_name)
    return found


def test_options_are_those_of_the_service() -> None:
    assert set(DetectOptions.__annotations__) == set(DetectParameters.model_fields)


@pytest.mark.parametrize(
    "refusal",
    [
        problem(429, "queue_full", retryable=True, retry_after="0"),
        problem(503, "not_ready", retryable=True, retry_after="0"),
        problem(503, "stopping", retryable=True),
        problem(504, "deadline_exceeded", retryable=True),
        problem(408, "slow_body", retryable=True),
        Reply(502, {}),
        None,
    ],
    ids=["429", "503", "stopping", "504", "408", "proxy", "closed"],
)
def test_no_image_is_lost_by_a_service_that_refuses_each_once(
    refusal: Reply | None, detect_all: DetectAll
) -> None:
    with fake_service(lambda body, n: refusal if n == 1 else echo(body)) as (url, service):
        results = detect_all(url, IMAGES, POLICY)
    assert names(results) == [body.decode() for body in IMAGES]
    assert sorted(service.bodies) == sorted(IMAGES * 2), "each is sent twice"


def test_responses_with_retry_after_do_not_count_as_failures(detect_all: DetectAll) -> None:
    refusal = problem(429, "queue_full", retryable=True, retry_after="0")
    policy = RetryPolicy(deadline_s=60, retries=0)
    with fake_service(lambda body, n: refusal if n < 9 else echo(body)) as (url, service):
        assert names(detect_all(url, IMAGES[:1], policy)) == ["image 0"]
    assert len(service.bodies) == 9


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (problem(400, "bad_image", retryable=False), "bad_image"),
        (problem(401, "unauthorized", retryable=False), "unauthorized"),
        (problem(413, "image_size", retryable=False, retry_after="0"), "image_size"),
        (problem(422, "invalid_option", retryable=True), "invalid_option"),
        (problem(429, "other", retryable=False, retry_after="0"), "other"),
        (problem(503, "model_unavailable", retryable=False), "model_unavailable"),
        (Reply(500, {}), ""),
        (Reply(404, {}), ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_succeed_is_sent_once_and_the_error_takes_its_place(
    refusal: Reply, code: str, detect_all: DetectAll
) -> None:
    def script(body: bytes, _: int) -> Reply:
        return refusal if body == IMAGES[1] else echo(body)

    with fake_service(script) as (url, service):
        first, error, third = detect_all(url, IMAGES[:3], POLICY)
    assert names([first, third]) == ["image 0", "image 2"]
    assert service.bodies.count(IMAGES[1]) == 1
    assert isinstance(error, ResponseError)
    assert (error.status, error.code) == (refusal.status, code)
    assert error.problem == refusal.body


def test_temporary_failures_are_retried_as_often_as_configured(detect_all: DetectAll) -> None:
    policy = RetryPolicy(deadline_s=60, retries=2)
    with fake_service(lambda *_: problem(503, "stopping", retryable=True)) as (url, service):
        (error,) = detect_all(url, IMAGES[:1], policy)
    assert isinstance(error, ResponseError)
    assert error.retryable
    assert len(service.bodies) == 3


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_retry_after_the_deadline_is_not_waited_for(form: str, detect_all: DetectAll) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    refusal = problem(
        429, "rate_limited", retryable=True, retry_after="3600" if form == "seconds" else later
    )
    with fake_service(lambda *_: refusal) as (url, service):
        (error,) = detect_all(url, IMAGES[:1], POLICY)
    assert isinstance(error, ResponseError)
    assert error.retry_after_s == pytest.approx(3600, abs=60)
    assert len(service.bodies) == 1


def test_an_image_without_a_response_in_time_is_sent_again(detect_all: DetectAll) -> None:
    released = threading.Event()

    def script(body: bytes, n: int) -> Reply:
        if n == 1:
            released.wait(30)
        return echo(body)

    policy = RetryPolicy(timeout_s=0.5, deadline_s=60)
    with fake_service(script) as (url, service):
        results = detect_all(url, IMAGES[:3], policy)
        released.set()
    assert names(results) == ["image 0", "image 1", "image 2"]
    assert {int(one["X-Deadline-Ms"]) for one in service.headers} == {500}


def test_the_deadline_ends_the_attempts(detect_all: DetectAll) -> None:
    released = threading.Event()

    def script(body: bytes, _: int) -> Reply:
        released.wait(30)
        return echo(body)

    policy = RetryPolicy(timeout_s=20, deadline_s=0.3, retries=100)
    with fake_service(script) as (url, service):
        (error,) = detect_all(url, IMAGES[:1], policy)
        released.set()
    assert isinstance(error, ResponseTimeoutError)
    assert 0 < int(service.headers[0]["X-Deadline-Ms"]) <= 300


def test_no_image_is_lost_when_the_service_restarts(detect_all: DetectAll) -> None:
    """The first service closes connections without a response, then its port is closed."""
    port, half = free_port(), len(IMAGES) // 2
    answered: list[bytes] = []
    stopped = threading.Event()

    def before(body: bytes, _: int) -> Reply | None:
        if len(answered) >= half:
            stopped.set()
            return None
        answered.append(body)
        return echo(body)

    results: Results = []
    policy = RetryPolicy(timeout_s=20, deadline_s=60, retries=1000)
    url = f"http://127.0.0.1:{port}"
    caller = threading.Thread(target=lambda: results.extend(detect_all(url, IMAGES, policy)))
    with fake_service(before, port):
        caller.start()
        assert stopped.wait(30)
    with fake_service(lambda body, _: echo(body), port):
        caller.join(60)
    assert names(results) == [body.decode() for body in IMAGES]


def test_a_service_that_cannot_be_reached(detect_all: DetectAll) -> None:
    policy = RetryPolicy(deadline_s=60, retries=1)
    (error,) = detect_all(f"http://127.0.0.1:{free_port()}", IMAGES[:1], policy)
    assert isinstance(error, ConnectionFailedError)
    assert "cannot be reached" in str(error)


def test_a_stopping_service_answers_or_refuses_every_image(
    start_server: Callable[..., RunningServer],
) -> None:
    """Images that the real service has admitted are answered; others are refused, none is lost."""
    engine = GatedEngine()
    server = start_server(engine, max_batch_size=1)
    images = [encode(plain(number, number)) for number in range(8)]
    results: Results = []
    policy = RetryPolicy(deadline_s=60, retries=2)
    caller = threading.Thread(
        target=lambda: results.extend(detect_sync(server.url, images, policy))
    )
    caller.start()
    wait_until(lambda: server.metric("centernet_queue_inputs", model="painted") >= 7)
    server.stop()
    engine.gate.set()
    caller.join(60)
    assert len(results) == len(images)
    for result, number in zip(results, range(8), strict=True):
        if isinstance(result, DetectionResult):
            assert result.boxes_xyxy[0].mean() == pytest.approx(4 * number, abs=4)
        else:
            assert isinstance(result, ResponseError | ConnectionFailedError)
            assert result.retryable


def test_waiting_for_a_retry_ends_when_retries_are_stopped() -> None:
    refusal = problem(429, "queue_full", retryable=True, retry_after="50")
    received = threading.Event()

    def script(*_: object) -> Reply:
        received.set()
        return refusal

    with fake_service(script) as (url, _), Client(url, retry=RetryPolicy(deadline_s=300)) as client:
        errors: list[ClientError] = []

        def call() -> None:
            try:
                client.detect(b"image")
            except ClientError as error:
                errors.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        assert received.wait(10)
        client.stop_retries()
        thread.join(30)
        assert not thread.is_alive()
    assert [type(error) for error in errors] == [ResponseError]


def test_the_images_of_a_generator_are_taken_as_they_are_sent(detect_all: DetectAll) -> None:
    taken = 0

    def images() -> Any:
        nonlocal taken
        for number in range(20):
            taken += 1
            yield f"{number}/{taken}".encode()

    with fake_service(lambda body, _: echo(body)) as (url, _):
        found = names(detect_all(url, images(), POLICY, concurrency=3))
    assert len(found) == 20

    with fake_service(lambda body, _: echo(body)) as (url, _), Client(url) as client:
        taken = 0
        iterator = client.detect_many(images(), concurrency=3)
        next(iterator)
        assert taken <= 4


def test_images_that_cannot_be_read_take_their_place(detect_all: DetectAll, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"file")
    missing: list[Any] = [b"bytes", path, str(path), tmp_path / "missing", 7]
    with fake_service(lambda body, _: echo(body)) as (url, _):
        *found, not_there, wrong = detect_all(url, missing, POLICY)
    assert names(found) == ["bytes", "file", "file"]
    assert isinstance(not_there, ImageInputError)
    assert "missing cannot be read: No such file" in str(not_there)
    assert isinstance(wrong, ImageInputError)
    assert "received int" in str(wrong)


def test_the_api_key_is_sent_and_models_are_read() -> None:
    with fake_service(lambda body, _: echo(body)) as (url, service):
        with Client(url, api_key="k" * 16) as client:
            client.detect(b"x", score_threshold=0.5)
            (model,) = client.list_models()
        assert service.headers[0]["Authorization"] == "Bearer " + "k" * 16
        assert (model.name, model.classes, model.is_default) == ("painted", ("red",), True)

        async def names_of_models() -> list[str]:
            async with AsyncClient(url) as client:
                return [(await client.get_model()).name, (await client.list_models())[0].name]

        assert asyncio.run(names_of_models()) == ["painted", "painted"]


@pytest.mark.parametrize("key", ["kéy", "line\nbreak"])
def test_an_api_key_that_cannot_be_sent_is_refused(key: str) -> None:
    for client in (Client, AsyncClient):
        with pytest.raises(ClientError, match="printable ASCII"):
            client("http://127.0.0.1:1", api_key=key)


@pytest.mark.parametrize("body", [{}, {"detections": [{"bbox": [1]}]}])
def test_a_response_of_another_service_is_an_error(body: Any, detect_all: DetectAll) -> None:
    with fake_service(lambda *_: Reply(200, body)) as (url, service):
        (error,) = detect_all(url, IMAGES[:1], POLICY)
    assert isinstance(error, InvalidResponseError)
    assert "is this a CenterNet service?" in str(error)
    assert len(service.bodies) == 1


def test_an_invalid_url_is_not_retried(detect_all: DetectAll) -> None:
    (error,) = detect_all("127.0.0.1", IMAGES[:1], POLICY)
    assert "is not a valid URL" in str(error)
    with pytest.raises(ClientError, match="Invalid port: 'x'"):
        Client("http://127.0.0.1:x")
    with pytest.raises(ClientError, match="Invalid port: 'x'"):
        AsyncClient("http://127.0.0.1:x")


def test_limits_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="deadline_s=0"):
        RetryPolicy(deadline_s=0)


def test_a_client_keeps_its_connections() -> None:
    """32 images at a time use 32 connections, which the next ones use again."""
    connections: set[threading.Thread] = set()
    all_sent = threading.Barrier(32)

    def script(body: bytes, _: int) -> Reply:
        connections.add(threading.current_thread())
        all_sent.wait(30)
        return echo(body)

    with fake_service(script) as (url, _), Client(url) as client:
        for _ in range(3):
            assert len(names(list(client.detect_many(IMAGES[:32])))) == 32
    assert len(connections) == 32
