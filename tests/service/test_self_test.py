"""The self-test detects an engine with wrong outputs, at start-up and later."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
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

from model_package import PackageInvalidError, load_package
from service.engines import EngineUnavailableError, Images
from service.engines.precision import ComputePrecision
from service.image_pool import ImagePool
from service.model_registry import ModelRegistry
from service.observability.metrics import Metrics
from service.self_test import SelfTest, draw_test_image, make_self_test
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
    self_test = SelfTest.from_engine(manifest.input, engine)
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


def test_the_check_raises_when_an_engine_disagrees_with_the_reference() -> None:
    engine = FaultyEngine()
    self_test = SelfTest.from_engine(make_manifest().input, engine)
    self_test.check(engine)
    engine.fault = zero_scores
    with pytest.raises(EngineUnavailableError, match=r"colour engine: .* differs by 0.9"):
        self_test.check(engine)


def boxes(*moves: float) -> Outputs:
    """Return outputs for two images: boxes of 10 cells, moved by ``moves``, with falling scores."""
    count = len(moves)
    centers = np.stack([np.arange(count) * 20 + moves, np.zeros(count)], 1)
    rows = {
        "scores": np.linspace(0.9, 0.1, count),
        "class_ids": np.zeros(count, np.int32),
        "centers": centers,
        "sizes": np.full((count, 2), 10.0),
    }
    return {name: np.stack([values, values]) for name, values in rows.items()}


class RecordedEngine(FaultyEngine):
    """Engine that returns given outputs."""

    def __init__(self, outputs: Outputs, precision: ComputePrecision) -> None:
        super().__init__()
        self.precision = precision
        self.outputs = outputs

    def run(self, images: Images, flip: bool = False) -> Outputs:
        del flip
        return {name: values[: len(images)] for name, values in self.outputs.items()}


@pytest.mark.parametrize(
    ("precision", "moves", "agrees"),
    [
        ("fp32", [0.0] * 11, True),
        ("fp32", [0.1] * 11, False),
        ("bf16", [0.1] * 11, True),
        ("bf16", [0.0] * 10 + [9.0], True),  # the last row may have replaced another
        ("bf16", [9.0, *[0.0] * 10], True),  # 9 of 10 detections
        ("bf16", [9.0, 9.0, *[0.0] * 9], False),
        ("int8", [0.2] * 11, True),
        ("int8", [0.8] * 11, False),
        ("int8", [9.0, 9.0, *[0.0] * 9], False),
        ("fp16", [9.0] * 11, True),  # compared when the package was made
    ],
)
def test_recorded_detections_must_agree_within_the_limits_of_the_precision(
    precision: ComputePrecision, moves: list[float], agrees: bool
) -> None:
    images = np.zeros((2, 64, 64, 3), np.uint8)
    self_test = SelfTest(images, boxes(*[0.0] * 11), is_recorded=True)
    refused = pytest.raises(EngineUnavailableError, match=r"of 2[02] detections")
    with nullcontext() if agrees else refused:
        self_test.check(RecordedEngine(boxes(*moves), precision))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_bf16_and_int8_are_compared_from_the_score_threshold(precision: ComputePrecision) -> None:
    images, expected = np.zeros((2, 64, 64, 3), np.uint8), boxes(*[0.0] * 21)
    # 11 of 21 rows have at least this score.
    self_test = SelfTest(images, expected, is_recorded=True, score_threshold=0.5 - 1e-6)
    low_scores_moved = RecordedEngine(boxes(*[0.0] * 11, *[9.0] * 10), precision)
    high_scores_moved = RecordedEngine(boxes(*[9.0] * 2, *[0.0] * 19), precision)
    if precision == "fp32":
        for engine in (low_scores_moved, high_scores_moved):
            with pytest.raises(EngineUnavailableError, match=r"of 4[02] detections"):
                self_test.check(engine)
    else:
        self_test.check(low_scores_moved)
        with pytest.raises(EngineUnavailableError, match="18 of 22 detections"):
            self_test.check(high_scores_moved)


class InTurnEngine(RecordedEngine):
    """Engine that returns the outputs of one image after the other."""

    def run(self, images: Images, flip: bool = False) -> Outputs:
        outputs = super().run(images, flip)
        self.outputs = {name: np.roll(values, -1, axis=0) for name, values in self.outputs.items()}
        return outputs


def test_the_score_threshold_is_that_of_the_model(bundled: Path) -> None:
    package = load_package(bundled)
    manifest = package.manifest
    assert manifest.references is not None
    with np.load(package.directory / manifest.references.file) as file:
        outputs = {output.name: file[output.name] for output in manifest.decoder.outputs()}
    is_below = outputs["scores"] < manifest.decoder.score_threshold
    assert 0.5 < is_below.mean() < 1
    for moved, agrees in ((is_below, True), (~is_below, False)):
        centers = np.where(moved[..., np.newaxis], outputs["centers"] + 9, outputs["centers"])
        engine = InTurnEngine({**outputs, "centers": centers}, "bf16")
        refused = pytest.raises(EngineUnavailableError, match="detections in the recorded images")
        with nullcontext() if agrees else refused:
            make_self_test(package, engine).check(engine)


def test_outputs_without_detections_are_not_accepted_by_a_comparison_of_detections() -> None:
    images, outputs = np.zeros((2, 64, 64, 3), np.uint8), boxes(*[0.0] * 11)
    self_test = SelfTest(images, outputs, is_recorded=True, score_threshold=0.95)
    self_test.check(RecordedEngine(outputs, "fp32"))
    with pytest.raises(EngineUnavailableError, match=r"0 of 0 detections.*Record images with more"):
        self_test.check(RecordedEngine(outputs, "bf16"))


@pytest.mark.parametrize(
    ("precision", "change", "agrees"),
    [("fp32", 0.03, False), ("bf16", 0.03, False), ("int8", 0.03, True), ("int8", 0.12, False)],
)
def test_scores_must_agree_within_the_tolerance_of_the_precision(
    precision: ComputePrecision, change: float, agrees: bool
) -> None:
    self_test = SelfTest(np.zeros((2, 64, 64, 3), np.uint8), boxes(0.0))
    outputs = {**boxes(0.0), "scores": boxes(0.0)["scores"] - change}
    error = self_test.error_of(outputs, precision)
    assert (error is None) == agrees
    with nullcontext() if agrees else pytest.raises(EngineUnavailableError, match="differs by"):
        self_test.check(RecordedEngine(outputs, precision))


def test_interval_zero_disables_the_self_test() -> None:
    with run_server(load, Settings(self_test_interval_s=0)) as server:
        assert engine_of(server).batch_sizes == [1], "only the run of the reference"


def test_the_image_is_deterministic_and_not_uniform() -> None:
    image = draw_test_image(64, 96)
    assert (image.shape, image.dtype) == ((64, 96, 3), np.uint8)
    assert np.array_equal(image, draw_test_image(64, 96))
    assert image.std(axis=(0, 1)).min() > 20


@pytest.mark.parametrize("damage", ["not a zip file", "an output is missing", "expands"])
def test_damaged_references_are_refused(tmp_path: Path, bundled: Path, damage: str) -> None:
    package = load_package(bundled)
    assert package.manifest.references is not None
    path = tmp_path / package.manifest.references.file
    if damage == "not a zip file":
        path.write_bytes(b"damaged")
    elif damage == "expands":
        np.savez_compressed(path, images=np.zeros((300, 1024, 1024), np.uint8))
    else:
        np.savez(path, images=np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(PackageInvalidError, match="does not contain references of this model"):
        make_self_test(replace(package, directory=tmp_path), ColourEngine())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("centers", lambda values: np.repeat(values, 1000, axis=1)),
        ("sizes", lambda values: values[:1]),
        ("scores", lambda values: values.astype("U9")),
        ("images", lambda values: values.astype(np.float32)),
        ("images", lambda values: values[..., :1]),
    ],
)
def test_references_of_other_shapes_and_types_are_refused(
    tmp_path: Path, bundled: Path, name: str, change: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    package = load_package(bundled)
    assert package.manifest.references is not None
    file = package.manifest.references.file
    with np.load(package.directory / file) as recorded:
        arrays: dict[str, Any] = dict(recorded)
    arrays[name] = change(arrays[name])
    np.savez_compressed(tmp_path / file, **arrays)
    with pytest.raises(PackageInvalidError, match=f"{name} is .* instead of"):
        make_self_test(replace(package, directory=tmp_path), ColourEngine())
