"""Deadlines and priorities over HTTP."""

import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from numpy.typing import NDArray
from support.images import encode, plain
from support.serving import ColourEngine, GatedEngine, RunningServer, wait_until

from service.engines import Images

IMAGE = encode(plain(200, 40))


def post(server: RunningServer, body: bytes = IMAGE, **headers: str) -> httpx.Response:
    sent_headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.client.post("/detect", content=body, headers=sent_headers)


def wait_until_queued(server: RunningServer, count: int) -> None:
    wait_until(lambda: server.metric("centernet_queue_inputs", model="painted") == count)


def test_an_unreachable_deadline_gets_429_with_retry_after(
    start_server: Callable[..., RunningServer],
) -> None:
    engine = GatedEngine()
    server = start_server(engine)
    with ThreadPoolExecutor(2) as clients:
        slow = clients.submit(post, server)
        assert engine.entered.acquire(timeout=10)
        time.sleep(0.3)  # the latency that the model observes
        engine.gate.set()
        assert slow.result(20).status_code == 200
        engine.gate.clear()
        admitted = clients.submit(post, server)
        wait_until_queued(server, 1)
        rejected = post(server, X_Deadline_Ms="100")
        assert (rejected.status_code, rejected.json()["code"]) == (429, "deadline_unreachable")
        assert int(rejected.headers["Retry-After"]) >= 1
        patient = clients.submit(post, server, X_Deadline_Ms="60000")
        wait_until_queued(server, 2)
        engine.gate.set()
        assert {admitted.result(20).status_code, patient.result(20).status_code} == {200}
    assert sum(engine.batch_sizes) == 3, "the rejected request cost no engine time"


def test_responds_504_after_the_deadline(start_server: Callable[..., RunningServer]) -> None:
    engine = GatedEngine()
    server = start_server(engine)
    response = post(server, X_Deadline_Ms="200")
    engine.gate.set()
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
    assert server.metric("centernet_request_errors_total", code="deadline_exceeded") == 1
    # The run had begun: its input counts as cancelled during inference.
    labels = {"model": "painted", "stage": "infer"}
    wait_until(lambda: server.metric("centernet_cancelled_inputs_total", **labels) == 1)


@pytest.mark.parametrize("value", ["0", "-5", "soon", "1.5", "3600001", ""])
def test_rejects_invalid_deadlines(server: RunningServer, value: str) -> None:
    response = post(server, X_Deadline_Ms=value)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_option")
    assert "X-Deadline-Ms" in response.json()["detail"]


def test_rejects_unknown_priorities(server: RunningServer) -> None:
    response = post(server, X_Priority="urgent")
    assert (response.status_code, response.json()["code"]) == (422, "invalid_option")
    assert "'high', 'normal' or 'low'" in response.json()["detail"]


class OrderedEngine(GatedEngine):
    """Gated engine that records the red value of each image in the order of the runs."""

    def __init__(self) -> None:
        super().__init__()
        self.reds: list[int] = []

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        outputs = super().run(images, flip)
        self.reds += [round(float(center[0, 0])) for center in outputs["centers"]]
        return outputs


def test_higher_priorities_run_first(start_server: Callable[..., RunningServer]) -> None:
    engine = OrderedEngine()
    server = start_server(engine, max_batch_size=1)
    priorities = {10: "normal", 20: "low", 30: "normal", 40: "high"}
    with ThreadPoolExecutor(len(priorities)) as clients:
        responses = []
        for count, (red, priority) in enumerate(priorities.items(), 1):
            body = encode(plain(red, 0))
            responses.append(clients.submit(post, server, body, X_Priority=priority))
            if count == 1:
                assert engine.entered.acquire(timeout=10)
            wait_until_queued(server, count)
        wait_until(lambda: queue_depth(server) == len(priorities) - 1)
        engine.gate.set()
        assert {response.result(20).status_code for response in responses} == {200}
    assert engine.reds == [10, 40, 30, 20]


def queue_depth(server: RunningServer) -> int:
    detector = server.state.loader.models.get(None)
    depth: int = detector._batcher.depth
    return depth


def test_response_headers_describe_the_stages_and_the_batch(
    start_server: Callable[..., RunningServer],
) -> None:
    response = post(start_server(ColourEngine()))
    timing = response.headers["Server-Timing"]
    stages = re.findall(r"(\w+);dur=[\d.]+", timing)
    assert stages[:5] == ["decode_queue", "prepare", "queue", "infer", "postprocess"]
    assert timing.endswith('batch;desc="1, idle"')
    assert response.headers["X-Batch-Size"] == "1"
