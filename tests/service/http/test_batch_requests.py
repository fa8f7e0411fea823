"""Requests with several images."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from numpy.typing import NDArray
from support.images import encode, plain
from support.serving import ColourEngine, GatedEngine, RunningServer, wait_until

from service.async_detector import MAX_SIZE_DELAY_S
from service.batching.latency_model import LatencyModel
from service.engines import Images


def form(*bodies: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("image", (f"{index}.png", body)) for index, body in enumerate(bodies)]


def test_each_image_gets_the_detections_of_a_single_request(server: RunningServer) -> None:
    bodies = [encode(plain(red, 10)) for red in (20, 90, 200)]
    alone = [server.client.post("/detect", content=body).json() for body in bodies]
    for url in ("/detect/batch", "/models/painted/detect/batch"):
        response = server.client.post(url, files=form(*bodies))
        assert response.status_code == 200
        results = response.json()["results"]
        assert [one["detections"] for one in results] == [one["detections"] for one in alone]


def test_an_invalid_image_fails_alone(server: RunningServer) -> None:
    good, bad = encode(plain(20, 10)), encode(plain(20, 10))[:60]
    results = server.client.post("/detect/batch", files=form(good, bad, good)).json()["results"]
    assert "detections" in results[0]
    assert (results[1]["status"], results[1]["code"]) == (400, "bad_image")
    assert results[2]["detections"] == results[0]["detections"]


def test_requests_larger_than_a_batch_are_split(
    start_server: Callable[..., RunningServer],
) -> None:
    engine = ColourEngine()
    server = start_server(engine, max_batch_size=4)
    bodies = [encode(plain(10 * index, 10)) for index in range(11)]
    response = server.client.post("/detect/batch", files=form(*bodies))
    assert len(response.json()["results"]) == 11
    assert sum(engine.batch_sizes) == 11
    assert max(engine.batch_sizes) <= 4


def test_each_image_takes_a_queue_slot(start_server: Callable[..., RunningServer]) -> None:
    engine = GatedEngine()
    server = start_server(engine, max_queue_size=3)
    body = encode(plain(1, 2))
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(server.client.post, "/detect", content=body)
        assert engine.entered.acquire(timeout=10)
        response = server.client.post("/detect/batch", files=form(body, body, body))
        assert response.status_code == 429
        assert "this request needs 3" in response.json()["detail"]
        engine.gate.set()
        assert first.result(20).status_code == 200
    assert server.client.post("/detect/batch", files=form(body, body, body)).status_code == 200


class RecordingEngine(GatedEngine):
    """Gated engine that records the red value of each image."""

    def __init__(self) -> None:
        super().__init__()
        self.reds: list[int] = []

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        self.reds += [int(image[..., 0].max()) for image in images]
        return super().run(images, flip)


def test_a_request_of_one_image_is_run_before_a_waiting_batch_request(
    start_server: Callable[..., RunningServer],
) -> None:
    engine = RecordingEngine()
    server = start_server(engine, max_batch_size=1)
    detector = server.state.loader.models.get(None)
    detector._run_latency = LatencyModel([(1, 0.1), (2, 0.2)])
    with ThreadPoolExecutor(3) as clients:
        responses = [clients.submit(server.client.post, "/detect", content=encode(plain(10, 0)))]
        assert engine.entered.acquire(timeout=10)
        batch = form(*[encode(plain(100, 0))] * 5)
        responses.append(clients.submit(server.client.post, "/detect/batch", files=batch))
        wait_until(lambda: server.metric("centernet_queue_inputs", model="painted") == 6)
        responses.append(
            clients.submit(server.client.post, "/detect", content=encode(plain(50, 0)))
        )
        wait_until(lambda: server.metric("centernet_queue_inputs", model="painted") == 7)
        wait_until(lambda: len(detector._batcher._queue) == 6)
        engine.gate.set()
        assert [response.result(20).status_code for response in responses] == [200] * 3
    assert engine.reds == [10, 50, *[100] * 5]
    assert detector.size_delay_s(1) == 0
    assert detector.size_delay_s(5) == pytest.approx(4)
    assert detector.size_delay_s(1000) == MAX_SIZE_DELAY_S


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ({"content": b"x", "headers": {"Content-Type": "image/png"}}, 415, "multipart/form-data"),
        ({"files": form(*[b"x"] * 17)}, 400, "up to 16 file fields"),
        ({"files": [("a", ("a", b"x"))]}, 400, "no file field named 'image'"),
    ],
)
def test_rejects_invalid_batch_requests(
    server: RunningServer, arguments: dict[str, Any], status: int, text: str
) -> None:
    response = server.client.post("/detect/batch", **arguments)
    assert response.status_code == status
    assert text in response.json()["detail"]
