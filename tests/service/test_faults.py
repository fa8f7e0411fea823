"""Effects of faults below a request: on the request, on its batch and on the probes."""

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
from service.image_pool import ImagePool
from service.model_registry import ModelRegistry
from service.observability.metrics import Metrics
from service.settings import Settings

Outputs = Mapping[str, NDArray[Any]]
BUNDLED = Path(__file__).parents[2] / "models" / "blood_cells"
GOOD, BAD = encode(plain(10, 40)), encode(plain(250, 40))


def post(server: RunningServer, body: bytes = GOOD, path: str = "/detect") -> httpx.Response:
    return server.client.post(path, content=body)


def status_and_code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json().get("code", "")


class FaultyEngine(GatedEngine):
    """Gated engine whose outputs pass through ``fault``; its gate is open from the start."""

    def __init__(self, fault: Callable[[dict[str, Any]], Outputs]) -> None:
        super().__init__()
        self.gate.set()
        self.fault = fault

    def run(self, images: Images, flip: bool = False) -> Outputs:
        return self.fault(dict(super().run(images, flip)))


def detect_in_one_batch(
    server: RunningServer, engine: FaultyEngine, *bodies: bytes
) -> list[httpx.Response]:
    """Send the bodies during another run, so that they share the next batch."""
    engine.gate.clear()
    detector = server.state.loader.models.get(None)
    with ThreadPoolExecutor(1 + len(bodies)) as clients:
        first = clients.submit(post, server)
        assert engine.entered.acquire(timeout=10)
        responses = [clients.submit(post, server, body) for body in bodies]
        batcher = detector._batcher

        def arrived() -> int:
            return batcher.depth + sum(len(batch) for _, batch in list(batcher._runs.values()))

        wait_until(lambda: arrived() == 1 + len(bodies))
        engine.gate.set()
        first.result(20)
        return [response.result(20) for response in responses]


def raise_error(_: dict[str, Any]) -> Outputs:
    raise RuntimeError("no memory")


def drop_a_row(outputs: dict[str, Any]) -> Outputs:
    return {**outputs, "centers": outputs["centers"][1:]}


@pytest.mark.parametrize("fault", [raise_error, drop_a_row])
def test_a_failed_run_fails_only_its_batch(
    start_server: Callable[..., RunningServer], fault: Callable[[dict[str, Any]], Outputs]
) -> None:
    engine = FaultyEngine(fault)
    server = start_server(engine)
    for response in detect_in_one_batch(server, engine, GOOD, GOOD):
        assert status_and_code(response) == (500, "engine_failed")
        assert response.json()["retryable"] is True
    engine.fault = lambda outputs: outputs
    assert post(server).status_code == 200
    assert server.client.get("/livez").status_code == 200


def test_nan_scores_fail_only_their_image(
    start_server: Callable[..., RunningServer],
) -> None:
    def nan_for_red(outputs: dict[str, Any]) -> Outputs:
        outputs["scores"][outputs["centers"][:, 0, 0] > 200] = np.nan
        return outputs

    engine = FaultyEngine(nan_for_red)
    server = start_server(engine)
    responses = detect_in_one_batch(server, engine, GOOD, BAD, GOOD)
    assert [response.status_code for response in responses] == [200, 500, 200]
    assert status_and_code(responses[1]) == (500, "engine_failed")
    assert engine.batch_sizes == [1, 3]


def test_an_error_in_postprocessing_fails_only_its_image(
    start_server: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FaultyEngine(lambda outputs: outputs)
    server = start_server(engine)
    decoder = server.state.loader.models.get(None).detector.decoder
    decode = decoder.decode

    def fail_on_red(outputs: Any, options: Any) -> Any:
        if outputs[0].tensors["centers"][0, 0] > 200:
            raise IndexError("an error")
        return decode(outputs, options)

    monkeypatch.setattr(decoder, "decode", fail_on_red)
    responses = detect_in_one_batch(server, engine, GOOD, BAD, GOOD)
    assert [response.status_code for response in responses] == [200, 500, 200]
    assert status_and_code(responses[1]) == (500, "internal_error")
    assert engine.batch_sizes == [1, 3]
    assert server.metric("centernet_queue_inputs", model="painted") == 0, (
        "its place in the queue is free"
    )


def test_a_broken_engine_fails_every_request_and_the_probes(
    start_server: Callable[..., RunningServer],
) -> None:
    def break_engine(_: dict[str, Any]) -> Outputs:
        raise EngineBrokenError("an illegal memory access was encountered")

    engine = FaultyEngine(break_engine)
    server = start_server(engine)
    assert server.client.get("/livez").status_code == 200
    responses = [*detect_in_one_batch(server, engine, GOOD, GOOD, GOOD), post(server)]
    assert {status_and_code(response) for response in responses} == {(500, "engine_failed")}
    assert len(engine.batch_sizes) == 1, "a broken engine is not run again"
    for probe, code in (("/livez", "engine_broken"), ("/readyz", "not_ready")):
        response = server.client.get(probe)
        assert status_and_code(response) == (503, code)
        assert "illegal memory access" in response.json()["detail"]


def test_an_engine_that_hangs_does_not_affect_other_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.batching.types.STUCK_AFTER_S", 0.5)
    hanging = GatedEngine()

    def load(settings: Settings, metrics: Metrics) -> ModelRegistry:
        pool = ImagePool(2)
        engines = {"painted": hanging, "other": ColourEngine()}
        detectors = {
            name: make_async_detector(
                make_manifest().model_copy(update={"name": name}), engine, pool, settings, metrics
            )
            for name, engine in engines.items()
        }
        return ModelRegistry(detectors, "painted", pool)

    with run_server(load, Settings(request_timeout_s=0.3, max_batch_size=1)) as server:
        with ThreadPoolExecutor(3) as clients:
            late = [clients.submit(post, server) for _ in range(3)]
            assert hanging.entered.acquire(timeout=10)
            assert post(server, path="/models/other/detect").status_code == 200
            for response in late:
                assert status_and_code(response.result(20)) == (504, "deadline_exceeded")
        wait_until(lambda: server.client.get("/livez").status_code == 503)
        response = server.client.get("/livez")
        assert status_and_code(response) == (503, "engine_broken")
        assert "painted: a run of 1 images began" in response.json()["detail"]
        assert post(server, path="/models/other/detect").status_code == 200
        hanging.gate.set()
        wait_until(lambda: server.client.get("/livez").status_code == 200)
        assert post(server).status_code == 200


def test_a_full_disk_for_logs_fails_no_request() -> None:
    with Path("/dev/full").open("wb") as full:
        options = ("--models", str(BUNDLED), "--log-format", "json")
        with serve_process(SERVE, *options, stderr=full) as service:
            service.wait_for("/readyz")
            for _ in range(3):
                assert service.client.post("/detect", content=GOOD).status_code == 200


@pytest.mark.parametrize("change", ["cut", "other", "gone"])
def test_changes_to_the_package_files_do_not_affect_a_running_service(
    tmp_path: Path, change: str
) -> None:
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
