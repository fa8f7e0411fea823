"""What each fault below a request does to it, to its neighbours and to the probes."""

import shutil
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from support.images import encode, plain
from support.processes import SERVE, serve_process
from support.serving import (
    ColourEngine,
    GatedEngine,
    RunningServer,
    make_async_detector,
    make_manifest,
    run_server,
    wait_until,
)

from service.engines import Images
from service.engines.errors import EngineBrokenError
from service.model_registry import ModelRegistry
from service.observability.metrics import Metrics
from service.settings import Settings

Outputs = Mapping[str, NDArray[Any]]
BUNDLED = Path(__file__).parents[2] / "models" / "blood_cells"
GOOD, BAD = encode(plain(10, 40)), encode(plain(250, 40))


def post(server: RunningServer, body: bytes = GOOD, path: str = "/detect") -> httpx.Response:
    return server.client.post(path, content=body)


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json().get("code", "")


class FaultyEngine(GatedEngine):
    """Its outputs go through ``fault``; its gate is open, unless the test closes it."""

    def __init__(self, fault: Callable[[dict[str, Any]], Outputs]) -> None:
        super().__init__()
        self.gate.set()
        self.fault = fault

    def run(self, images: Images, flip: bool = False) -> Outputs:
        return self.fault(dict(super().run(images, flip)))


def together(server: RunningServer, engine: FaultyEngine, *bodies: bytes) -> list[httpx.Response]:
    """Ask for all of them in one batch: they gather while another run goes on."""
    engine.gate.clear()
    predictor = server.state.loader.models.get(None)
    with ThreadPoolExecutor(1 + len(bodies)) as clients:
        first = clients.submit(post, server)
        assert engine.entered.acquire(timeout=10)
        answers = [clients.submit(post, server, body) for body in bodies]
        batcher = predictor._batcher

        def arrived() -> int:
            return batcher.depth + sum(len(batch) for _, batch in list(batcher._runs.values()))

        wait_until(lambda: arrived() == 1 + len(bodies))
        engine.gate.set()
        first.result(20)
        return [answer.result(20) for answer in answers]


def raising(_: dict[str, Any]) -> Outputs:
    raise RuntimeError("no memory")


def a_row_short(outputs: dict[str, Any]) -> Outputs:
    return {**outputs, "centers": outputs["centers"][1:]}


@pytest.mark.parametrize("fault", [raising, a_row_short])
def test_a_run_that_fails_fails_its_batch_only(
    start_server: Callable[..., RunningServer], fault: Callable[[dict[str, Any]], Outputs]
) -> None:
    engine = FaultyEngine(fault)
    server = start_server(engine)
    for answer in together(server, engine, GOOD, GOOD):
        assert code_of(answer) == (500, "engine_failed")
        assert answer.json()["retryable"] is True
    engine.fault = lambda outputs: outputs
    assert post(server).status_code == 200
    assert server.client.get("/livez").status_code == 200


def test_scores_that_are_no_numbers_fail_their_image_only(
    start_server: Callable[..., RunningServer],
) -> None:
    def blind_to_red(outputs: dict[str, Any]) -> Outputs:
        outputs["scores"][outputs["centers"][:, 0, 0] > 200] = np.nan
        return outputs

    engine = FaultyEngine(blind_to_red)
    server = start_server(engine)
    answers = together(server, engine, GOOD, BAD, GOOD)
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    assert code_of(answers[1]) == (500, "engine_failed")
    assert engine.batch_sizes == [1, 3]


def test_post_processing_that_crashes_fails_its_image_only(
    start_server: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FaultyEngine(lambda outputs: outputs)
    server = start_server(engine)
    decoder = server.state.loader.models.get(None).detector.decoder
    decode = decoder.decode

    def crash_on_red(outputs: Any, options: Any) -> Any:
        if outputs[0].tensors["centers"][0, 0] > 200:
            raise IndexError("a mistake")
        return decode(outputs, options)

    monkeypatch.setattr(decoder, "decode", crash_on_red)
    answers = together(server, engine, GOOD, BAD, GOOD)
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    assert code_of(answers[1]) == (500, "internal_error")
    assert engine.batch_sizes == [1, 3]
    assert server.metric("centernet_queue_inputs", model="painted") == 0, "its place is free"


def test_a_broken_engine_asks_for_a_restart_and_answers_everybody(
    start_server: Callable[..., RunningServer],
) -> None:
    def breaking(_: dict[str, Any]) -> Outputs:
        raise EngineBrokenError("an illegal memory access was encountered")

    engine = FaultyEngine(breaking)
    server = start_server(engine)
    assert server.client.get("/livez").status_code == 200
    answers = [*together(server, engine, GOOD, GOOD, GOOD), post(server)]
    assert {code_of(answer) for answer in answers} == {(500, "engine_failed")}
    assert len(engine.batch_sizes) == 1, "it is not tried again"
    for probe, code in (("/livez", "engine_broken"), ("/readyz", "not_ready")):
        answer = server.client.get(probe)
        assert code_of(answer) == (503, code)
        assert "illegal memory access" in answer.json()["detail"]


def test_an_engine_that_hangs_harms_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.batching.batcher.STUCK_AFTER_S", 0.5)
    hanging = GatedEngine()

    def load(settings: Settings, metrics: Metrics) -> ModelRegistry:
        pool = ThreadPoolExecutor(2)
        engines = {"painted": hanging, "other": ColourEngine()}
        predictors = {
            name: make_async_detector(
                make_manifest().model_copy(update={"name": name}), engine, pool, settings, metrics
            )
            for name, engine in engines.items()
        }
        return ModelRegistry(predictors, "painted", pool)

    with run_server(load, Settings(request_timeout_s=0.3, max_batch_size=1)) as server:
        with ThreadPoolExecutor(3) as clients:
            late = [clients.submit(post, server) for _ in range(3)]
            assert hanging.entered.acquire(timeout=10)
            assert post(server, path="/models/other/detect").status_code == 200
            for answer in late:
                assert code_of(answer.result(20)) == (504, "deadline_exceeded")
        wait_until(lambda: server.client.get("/livez").status_code == 503)
        answer = server.client.get("/livez")
        assert code_of(answer) == (503, "engine_broken")
        assert "painted: a run of 1 images began" in answer.json()["detail"]
        assert post(server, path="/models/other/detect").status_code == 200
        hanging.gate.set()
        wait_until(lambda: server.client.get("/livez").status_code == 200)
        assert post(server).status_code == 200


def test_logs_on_a_full_disk_cost_no_answer() -> None:
    with Path("/dev/full").open("wb") as full:
        options = ("--models", str(BUNDLED), "--log-format", "json")
        with serve_process(SERVE, *options, stderr=full) as service:
            service.wait_for("/readyz")
            for _ in range(3):
                assert service.client.post("/detect", content=GOOD).status_code == 200


@pytest.mark.parametrize("change", ["cut", "other", "gone"])
def test_a_package_that_changes_underneath_changes_nothing(tmp_path: Path, change: str) -> None:
    package = tmp_path / "cells"
    shutil.copytree(BUNDLED, package)
    options = ("--models", str(package))
    with serve_process(SERVE, *options, stderr=subprocess.DEVNULL) as service:
        service.wait_for("/readyz")
        before = service.client.post("/detect?score_threshold=0", content=BAD).json()
        if change == "gone":
            shutil.rmtree(package)
        for file in package.glob("model*"):
            file.write_bytes(b"" if change == "cut" else bytes(file.stat().st_size))
        after = service.client.post("/detect?score_threshold=0", content=BAD).json()
        assert after["detections"] == before["detections"]
        assert len(after["detections"]) > 0
        assert service.status("/readyz") == 200
