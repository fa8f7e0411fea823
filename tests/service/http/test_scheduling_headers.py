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
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.client.post("/detect", content=body, headers=given)


def queued(server: RunningServer, count: int) -> None:
    wait_until(lambda: server.metric("centernet_queue_inputs", model="painted") == count)


def test_a_deadline_that_the_queue_does_not_allow_is_refused_with_a_time_to_wait(
    start_server: Callable[..., RunningServer],
) -> None:
    engine = GatedEngine()
    server = start_server(engine)
    with ThreadPoolExecutor(2) as clients:
        slow = clients.submit(post, server)
        assert engine.entered.acquire(timeout=10)
        time.sleep(0.3)  # which is now what an answer is believed to take
        engine.gate.set()
        assert slow.result(20).status_code == 200
        engine.gate.clear()
        inside = clients.submit(post, server)
        queued(server, 1)
        refused = post(server, X_Deadline_Ms="100")
        assert (refused.status_code, refused.json()["code"]) == (429, "deadline_unreachable")
        assert int(refused.headers["Retry-After"]) >= 1
        unhurried = clients.submit(post, server, X_Deadline_Ms="60000")
        queued(server, 2)
        engine.gate.set()
        assert {inside.result(20).status_code, unhurried.result(20).status_code} == {200}
    assert sum(engine.batch_sizes) == 3, "the refused one cost no engine time"


def test_an_answer_after_the_deadline_is_504(start_server: Callable[..., RunningServer]) -> None:
    engine = GatedEngine()
    server = start_server(engine)
    answer = post(server, X_Deadline_Ms="200")
    engine.gate.set()
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert server.metric("centernet_request_errors_total", code="deadline_exceeded") == 1
    # The engine had begun: its time is counted as wasted.
    labels = {"model": "painted", "stage": "infer"}
    wait_until(lambda: server.metric("centernet_cancelled_inputs_total", **labels) == 1)


@pytest.mark.parametrize("value", ["0", "-5", "soon", "1.5", "3600001", ""])
def test_deadlines_that_mean_nothing_are_refused(server: RunningServer, value: str) -> None:
    answer = post(server, X_Deadline_Ms=value)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_option")
    assert "X-Deadline-Ms" in answer.json()["detail"]


def test_unknown_priorities_are_refused(server: RunningServer) -> None:
    answer = post(server, X_Priority="urgent")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_option")
    assert "'high', 'normal' or 'low'" in answer.json()["detail"]


class OrderedEngine(GatedEngine):
    """Remembers the red of each image in the order of the runs."""

    def __init__(self) -> None:
        super().__init__()
        self.reds: list[int] = []

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        outputs = super().run(images, flip)
        self.reds += [round(float(one[0, 0])) for one in outputs["centers"]]
        return outputs


def test_priorities_overtake(start_server: Callable[..., RunningServer]) -> None:
    engine = OrderedEngine()
    server = start_server(engine, max_batch_size=1)
    arriving = {10: "normal", 20: "low", 30: "normal", 40: "high"}
    with ThreadPoolExecutor(len(arriving)) as clients:
        answers = []
        for count, (red, priority) in enumerate(arriving.items(), 1):
            body = encode(plain(red, 0))
            answers.append(clients.submit(post, server, body, X_Priority=priority))
            if count == 1:
                assert engine.entered.acquire(timeout=10)
            queued(server, count)
        wait_until(lambda: waiting(server) == len(arriving) - 1)
        engine.gate.set()
        assert {answer.result(20).status_code for answer in answers} == {200}
    assert engine.reds == [10, 40, 30, 20]


def waiting(server: RunningServer) -> int:
    predictor = server.state.loader.models.get(None)
    depth: int = predictor._batcher.depth
    return depth


def test_every_answer_says_what_its_batch_was(start_server: Callable[..., RunningServer]) -> None:
    answer = post(start_server(ColourEngine()))
    timing = answer.headers["Server-Timing"]
    stages = re.findall(r"(\w+);dur=[\d.]+", timing)
    assert stages[:4] == ["prepare", "queue", "infer", "postprocess"]
    assert timing.endswith('batch;desc="1, idle"')
    assert answer.headers["X-Batch-Size"] == "1"
