"""The self-test detects an engine with wrong outputs, at start-up and later."""

from collections.abc import Callable, Mapping
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
from service.image_pool import ImagePool
from service.model_registry import ModelRegistry
from service.observability.metrics import Metrics
from service.self_test import SelfTest, draw_test_image
from service.settings import Settings

Outputs = Mapping[str, NDArray[Any]]


class FaultyEngine(ColourEngine):
    """Engine whose outputs pass through ``fault``, which a test can replace."""

    def __init__(self) -> None:
        super().__init__()
        self.fault: Callable[[Outputs], Outputs] = lambda outputs: outputs

    def run(self, images: Images, flip: bool = False) -> Outputs:
        return self.fault(super().run(images, flip))


def load(settings: Settings, metrics: Metrics) -> ModelRegistry:
    manifest, engine = make_manifest(), FaultyEngine()
    self_test = SelfTest(manifest.input, engine)
    pool = ImagePool(1)
    detector = make_async_detector(manifest, engine, pool, settings, metrics, self_test)
    return ModelRegistry({"painted": detector}, "painted", pool)


def engine_of(server: RunningServer) -> FaultyEngine:
    engine = server.state.loader.models.get(None)._engine
    assert isinstance(engine, FaultyEngine)
    return engine


def zero_scores(outputs: Outputs) -> Outputs:
    return {**outputs, "scores": np.zeros_like(outputs["scores"])}


def nan_scores(outputs: Outputs) -> Outputs:
    return {**outputs, "scores": np.full_like(outputs["scores"], np.nan)}


def raise_error(_: Outputs) -> Outputs:
    raise RuntimeError("no memory")


@pytest.mark.parametrize(
    ("fault", "result", "reason"),
    [
        (zero_scores, "wrong", "differs by 0.9 from its reference"),
        (nan_scores, "failed", "could not be run"),
        (raise_error, "failed", "could not be run"),
    ],
)
def test_not_ready_while_the_engine_returns_wrong_outputs(
    fault: Callable[[Outputs], Outputs], result: str, reason: str
) -> None:
    with run_server(load, Settings(self_test_interval_s=0.05)) as server:

        def runs(result: str) -> float:
            return server.metric("centernet_self_test_runs_total", model="painted", result=result)

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
def test_warm_up_does_not_compare_the_reference_with_itself(is_reference: bool, runs: int) -> None:
    manifest, engine = make_manifest(), FaultyEngine()
    engine.is_reference = is_reference
    spec = manifest.input
    image, is_self_test = draw_test_image(spec.height_px, spec.width_px), []
    original = engine.run

    def run(images: Images, flip: bool = False) -> Outputs:
        is_self_test.append(np.array_equal(images[0], image))
        return original(images, flip)

    engine.run = run  # type: ignore[method-assign]
    self_test = SelfTest(spec, engine)
    make_async_detector(manifest, engine, ImagePool(1), Settings(), Metrics(), self_test).warm_up()
    assert sum(is_self_test) == runs


def test_warm_up_raises_when_the_engine_disagrees_with_the_reference() -> None:
    manifest, engine = make_manifest(), FaultyEngine()
    engine.is_reference = False
    self_test = SelfTest(manifest.input, engine)
    detector = make_async_detector(manifest, engine, ImagePool(1), Settings(), Metrics(), self_test)
    detector.warm_up()
    engine.fault = zero_scores
    with pytest.raises(EngineUnavailableError, match=r"painted on colour engine: .* differs by"):
        detector.warm_up()


def test_interval_zero_disables_the_self_test() -> None:
    with run_server(load, Settings(self_test_interval_s=0)) as server:
        assert engine_of(server).batch_sizes == [1], "only the run of the reference"


def test_the_image_is_deterministic_and_not_uniform() -> None:
    image = draw_test_image(64, 96)
    assert (image.shape, image.dtype) == ((64, 96, 3), np.uint8)
    assert np.array_equal(image, draw_test_image(64, 96))
    assert image.std(axis=(0, 1)).min() > 20
