"""A further version of a model that runs on a share of the requests and is compared."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from support.packages import IMAGE, edit_manifest, write_version
from support.serving import RunningServer, run_server, wait_until

from model_package import ModelPackage
from service.decoders.types import Detections
from service.engines import Engine, Images
from service.model_registry import ModelRegistry, load_models
from service.model_repository import open_detector
from service.observability.metrics import Metrics
from service.settings import Settings
from service.shadow import compare

LABELS = {"model": "cells", "version": "1", "shadow": "2"}


def detections(*rows: tuple[float, float, int]) -> Detections:
    """Return boxes of 10 x 10 pixels from (x1, score, class)."""
    boxes = [[x, 0, x + 10, 10] for x, _, _ in rows]
    return Detections(
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array([score for _, score, _ in rows], np.float32),
        np.array([class_id for _, _, class_id in rows], np.int32),
    )


def test_detections_are_matched_by_class_and_overlap() -> None:
    served = detections((0, 0.9, 0), (100, 0.8, 0), (200, 0.7, 1), (300, 0.6, 2))
    shadow = detections((1, 0.95, 0), (200, 0.7, 0), (302, 0.5, 2))
    agreement = compare(served, shadow)
    assert (agreement.missing, agreement.extra) == (2, 1)
    assert agreement.score_differences == pytest.approx([0.05, 0.1], abs=1e-6)
    assert agreement.ious == pytest.approx([9 / 11, 8 / 12])


@pytest.mark.parametrize("count", [0, 2])
def test_images_without_detections_can_be_compared(count: int) -> None:
    some = detections(*((100.0 * index, 0.5, 0) for index in range(count)))
    for served, shadow, missing, extra in (
        (some, detections(), count, 0),
        (detections(), some, 0, count),
    ):
        agreement = compare(served, shadow)
        assert (agreement.missing, agreement.extra, len(agreement.ious)) == (missing, extra, 0)


def load(settings: Settings, metrics: Metrics) -> ModelRegistry:
    return load_models(settings, metrics, lambda _: None)


@contextmanager
def serve(models: Path, **given: Any) -> Iterator[RunningServer]:
    fixed: dict[str, Any] = {"max_batch_size": 1, "backend": "onnxruntime-cpu"}
    with run_server(load, Settings(models=models, **fixed, **given)) as running:
        yield running


def runs(server: RunningServer, result: str) -> float:
    return server.metric("centernet_shadow_runs_total", result=result, **LABELS)


def found(server: RunningServer, result: str) -> float:
    return server.metric("centernet_shadow_detections_total", result=result, **LABELS)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Versions 1 and 2 of the model ``cells``, whose scores differ by 0.1."""
    write_version(tmp_path / "one", "1", score=0.5)
    write_version(tmp_path / "two", "2", score=0.6)
    return tmp_path


def detect(server: RunningServer) -> dict[str, Any]:
    response = server.client.post("/detect", content=IMAGE)
    assert response.status_code == 200
    body: dict[str, Any] = response.json()
    return body


def test_the_shadow_is_compared_and_never_answers(models: Path) -> None:
    with serve(models, shadow=("cells:2=1",)) as server:
        (listed,) = server.client.get("/models").json()["models"]
        assert (listed["version"], listed["versions"]) == ("1", ["2", "1"])
        for number in range(1, 4):
            body = detect(server)
            assert body["model"]["version"] == "1"
            assert body["detections"][0]["score"] == pytest.approx(0.5)
            wait_until(lambda number=number: runs(server, "compared") == number)
        count = len(body["detections"])
        assert count > 1
        # All detections of the packages have the same box, so each has a counterpart.
        assert found(server, "matched") == 3 * count
        assert found(server, "missing") == found(server, "extra") == 0
        differences = "centernet_shadow_score_difference"
        assert server.metric(f"{differences}_count", **LABELS) == 3 * count
        mean = server.metric(f"{differences}_sum", **LABELS) / (3 * count)
        assert mean == pytest.approx(0.1, abs=1e-5)
        assert server.metric("centernet_shadow_score_difference_max", **LABELS) == pytest.approx(
            0.1, abs=1e-5
        )
        ious = "centernet_shadow_box_iou"
        assert server.metric(f"{ious}_sum", **LABELS) == pytest.approx(3 * count)
        response = server.client.post("/models/cells/versions/2/detect", content=IMAGE)
        assert response.json()["model"]["version"] == "2"


def test_a_share_of_the_requests_is_compared(models: Path) -> None:
    with serve(models, shadow=("cells:2=0.25",)) as server:
        for number in range(1, 9):
            detect(server)
            wait_until(
                lambda number=number: (
                    runs(server, "compared") + runs(server, "skipped") == number // 4
                )
            )
        assert runs(server, "compared") + runs(server, "skipped") == 2


def test_a_shadow_that_is_not_loaded_changes_nothing_until_it_is(models: Path) -> None:
    (models / "two").rename(models / ".two")
    with serve(models, shadow=("cells:2=1",)) as server:
        detect(server)
        assert "centernet_shadow_runs_total{" not in server.client.get("/metrics").text
        (models / ".two").rename(models / "two")
        server.call(server.state.loader.models.reload())
        assert detect(server)["model"]["version"] == "1"
        wait_until(lambda: runs(server, "compared") == 1)
        # The version that is served is replaced: the comparison begins again with the new one.
        write_version(models / "three", "3", score=0.7)
        server.call(server.state.loader.models.reload())
        assert detect(server)["model"]["version"] == "3"
        labels = LABELS | {"version": "3", "result": "compared"}
        wait_until(lambda: server.metric("centernet_shadow_runs_total", **labels) == 1)
        assert 'version="1"' not in server.client.get("/metrics").text


def test_a_shadow_is_not_the_default_if_it_is_alone(models: Path) -> None:
    (models / "one").rename(models / ".one")
    with serve(models, shadow=("cells:2=1",)) as server:
        response = server.client.post("/detect", content=IMAGE)
        assert (response.status_code, response.json()["code"]) == (404, "unknown_model")
        assert "only as a shadow" in response.json()["detail"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"classes": ["b"]}, "its classes are not those"), ({}, None)],
)
def test_versions_that_cannot_be_compared_are_reported(
    models: Path, fields: dict[str, Any], reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    edit_manifest(models / "two", fields)
    with serve(models, shadow=("cells:2=1",)) as server:
        detect(server)
        if reason is None:
            wait_until(lambda: runs(server, "compared") == 1)
            assert "cannot be compared" not in caplog.text
        else:
            assert f"version 2 of cells cannot be compared: {reason}" in caplog.text
            assert "centernet_shadow_runs_total{" not in server.client.get("/metrics").text


class ControlledEngine:
    """An engine whose runs take a permit from ``permits``, or raise ``error``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.permits: threading.Semaphore | None = None
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, images: Images, flip: bool = False) -> Any:
        if self.permits is not None:
            assert self.permits.acquire(timeout=20), "the test has released no permit"
        if self.error is not None:
            raise self.error
        return self._engine.run(images, flip)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> dict[str, ControlledEngine]:
    """The engines of the versions that are loaded."""
    engines: dict[str, ControlledEngine] = {}

    def open_controlled(package: ModelPackage, settings: Settings) -> Any:
        detector, self_test = open_detector(package, settings)
        engine = ControlledEngine(detector.engine)
        engines[package.manifest.version] = engine
        detector.engine = engine  # type: ignore[assignment]
        return detector, self_test

    monkeypatch.setattr("service.model_repository.open_detector", open_controlled)
    return engines


def test_a_shadow_that_fails_affects_no_request(
    models: Path, engines: dict[str, ControlledEngine]
) -> None:
    with serve(models, shadow=("cells:2=1",)) as server:
        engines["2"].error = RuntimeError("no memory")
        for number in range(1, 4):
            detect(server)
            wait_until(lambda number=number: runs(server, "failed") == number)
        engines["2"].error = None
        detect(server)
        wait_until(lambda: runs(server, "compared") == 1)


def test_a_shadow_that_takes_long_skips_requests(
    models: Path, engines: dict[str, ControlledEngine]
) -> None:
    with serve(models, shadow=("cells:2=1",)) as server:
        permits = engines["2"].permits = threading.Semaphore(0)
        for number in range(5):
            detect(server)
            assert runs(server, "skipped") == number, "one run at a time"
        permits.release()
        wait_until(lambda: runs(server, "compared") == 1)
        # A shadow may be unloaded during a run.
        detect(server)
        wait_until(lambda: server.metric("centernet_queue_inputs", version="2") == 1)
        (models / "two").rename(models / ".two")
        server.call(server.state.loader.models.reload())
        detect(server)
        permits.release()
        wait_until(lambda: 'version="2"' not in server.client.get("/metrics").text)
        assert 'shadow="2"' not in server.client.get("/metrics").text


def test_a_shadow_does_not_run_beside_requests(
    models: Path, engines: dict[str, ControlledEngine]
) -> None:
    with serve(models, shadow=("cells:2=1",), engine_concurrency=1) as server:
        permits = engines["1"].permits = threading.Semaphore(0)
        threads = [threading.Thread(target=post, args=(server,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: server.metric("centernet_queue_inputs", version="1") == 2)
        permits.release()
        # While the first is answered, the second occupies the only run of the engine.
        wait_until(lambda: server.metric("centernet_queue_inputs", version="1") == 1)
        assert (runs(server, "compared"), runs(server, "skipped")) == (0, 1)
        permits.release()
        for thread in threads:
            thread.join()
        wait_until(lambda: runs(server, "compared") == 1)
        assert runs(server, "skipped") == 1


def post(server: RunningServer) -> None:
    """Send a request over a connection of its own."""
    assert httpx.post(f"{server.url}/detect", content=IMAGE, timeout=30).status_code == 200


def test_the_setting_is_validated() -> None:
    for value, reason in (
        ("cells=1", "NAME:VERSION=SHARE"),
        ("cells:2=0", "more than 0 and at most 1"),
        ("cells:2=1.5", "more than 0 and at most 1"),
        ("cells:2=nan", "NAME:VERSION=SHARE"),
        ("cells:2=0.1,cells:3=0.1", "one version of each model"),
    ):
        with pytest.raises(ValueError, match=reason):
            Settings(shadow=value)
    shadows = Settings(shadow="cells:1.2-rc1=0.5, people:2=1").shadows
    assert shadows == {"cells": ("1.2-rc1", 0.5), "people": ("2", 1.0)}
