"""The known image: an engine that goes blind is found out, at the start and later."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.serving import (
    ColourEngine,
    RunningServer,
    make_async_detector,
    make_manifest,
    run_server,
    wait_until,
)

from service.engines import EngineUnavailableError, Images
from service.model_registry import ModelRegistry
from service.observability.metrics import Metrics
from service.self_test import SelfTest, draw_test_image
from service.settings import Settings

Outputs = Mapping[str, NDArray[Any]]


class FadingEngine(ColourEngine):
    """Its outputs go through a function that the test may change."""

    def __init__(self) -> None:
        super().__init__()
        self.fault: Callable[[Outputs], Outputs] = lambda outputs: outputs

    def run(self, images: Images, flip: bool = False) -> Outputs:
        return self.fault(super().run(images, flip))


def load(settings: Settings, metrics: Metrics) -> ModelRegistry:
    manifest, engine = make_manifest(), FadingEngine()
    self_test = SelfTest(manifest.input, engine)
    pool = ThreadPoolExecutor(1)
    predictor = make_async_detector(manifest, engine, pool, settings, metrics, self_test)
    return ModelRegistry({"painted": predictor}, "painted", pool)


def engine_of(server: RunningServer) -> FadingEngine:
    engine = server.state.loader.models.get(None)._engine
    assert isinstance(engine, FadingEngine)
    return engine


def blind(outputs: Outputs) -> Outputs:
    return {**outputs, "scores": np.zeros_like(outputs["scores"])}


def not_numbers(outputs: Outputs) -> Outputs:
    return {**outputs, "scores": np.full_like(outputs["scores"], np.nan)}


def raising(_: Outputs) -> Outputs:
    raise RuntimeError("no memory")


@pytest.mark.parametrize(
    ("fault", "result", "reason"),
    [
        (blind, "wrong", "differs by 0.9 from its reference"),
        (not_numbers, "failed", "could not be run"),
        (raising, "failed", "could not be run"),
    ],
)
def test_a_wrong_engine_is_not_ready_until_it_recovers(
    fault: Callable[[Outputs], Outputs], result: str, reason: str
) -> None:
    with run_server(load, Settings(self_test_interval_s=0.05)) as server:

        def runs(of: str) -> float:
            return server.metric("centernet_self_test_runs_total", model="painted", result=of)

        wait_until(lambda: runs("ok") >= 1)
        assert server.client.get("/readyz").status_code == 200
        assert runs(result) == 0
        engine_of(server).fault = fault
        wait_until(lambda: server.client.get("/readyz").status_code == 503)
        problem = server.client.get("/readyz").json()
        assert (problem["code"], problem["retryable"]) == ("not_ready", True)
        assert reason in problem["detail"]
        assert runs(result) >= 1
        assert server.metric("centernet_model_ready", model="painted", version="1") == 0
        assert server.client.get("/livez").status_code == 200, "it may recover"
        engine_of(server).fault = lambda outputs: outputs
        wait_until(lambda: server.client.get("/readyz").status_code == 200)
        assert server.metric("centernet_model_ready", model="painted", version="1") == 1


@pytest.mark.parametrize(("is_reference", "runs"), [(True, 1), (False, 2)])
def test_the_reference_is_not_compared_with_itself_at_the_start(
    is_reference: bool, runs: int
) -> None:
    manifest, engine = make_manifest(), FadingEngine()
    engine.is_reference = is_reference
    spec = manifest.input
    image, seen = draw_test_image(spec.height_px, spec.width_px), []
    original = engine.run

    def run(images: Images, flip: bool = False) -> Outputs:
        seen.append(np.array_equal(images[0], image))
        return original(images, flip)

    engine.run = run  # type: ignore[method-assign]
    self_test = SelfTest(spec, engine)
    make_async_detector(
        manifest, engine, ThreadPoolExecutor(1), Settings(), Metrics(), self_test
    ).warm_up()
    assert sum(seen) == runs


def test_disagreement_at_the_start_stops_it() -> None:
    manifest, engine = make_manifest(), FadingEngine()
    engine.is_reference = False
    self_test = SelfTest(manifest.input, engine)
    predictor = make_async_detector(
        manifest, engine, ThreadPoolExecutor(1), Settings(), Metrics(), self_test
    )
    predictor.warm_up()
    engine.fault = blind
    with pytest.raises(EngineUnavailableError, match=r"painted on colour engine: .* differs by"):
        predictor.warm_up()


def test_no_interval_means_no_runs() -> None:
    with run_server(load, Settings(self_test_interval_s=0)) as server:
        assert engine_of(server).batch_sizes == [1], "the reference alone"


def test_the_image_is_the_same_for_everybody_and_has_something_in_it() -> None:
    image = draw_test_image(64, 96)
    assert (image.shape, image.dtype) == ((64, 96, 3), np.uint8)
    assert np.array_equal(image, draw_test_image(64, 96))
    assert image.std(axis=(0, 1)).min() > 20
