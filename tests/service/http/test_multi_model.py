"""Several models in one request."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from support.images import encode, plain
from support.serving import (
    ColourEngine,
    FixedEngine,
    GatedEngine,
    RunningServer,
    assert_problem,
    make_async_detector,
    make_manifest,
    run_server,
    wait_until,
)
from support.tasks import POSE_ROWS, POSES

from model_package import InputSpec
from service.engines import Engine
from service.imaging.image_decoding import OpenedImage
from service.model_registry import ModelRegistry, open_image_pool
from service.observability.metrics import Metrics
from service.settings import Settings

IMAGE = encode(plain(7, 9))
SMALL, LARGE = InputSpec(width_px=64, height_px=64), InputSpec(width_px=256, height_px=256)


def several(**engines: tuple[Engine, InputSpec]) -> Callable[[Settings, Metrics], ModelRegistry]:
    """Return a function that loads models by name; the first is the default."""

    def load(settings: Settings, metrics: Metrics) -> ModelRegistry:
        pool = open_image_pool(settings, metrics)
        detectors = {
            name: make_async_detector(
                make_manifest(input_spec=spec).model_copy(update={"name": name}),
                *(engine, pool, settings, metrics),
            )
            for name, (engine, spec) in engines.items()
        }
        return ModelRegistry(detectors, next(iter(detectors)), pool)

    return load


class FailingEngine(ColourEngine):
    """Engine whose runs fail after the warm-up."""

    def run(self, images, flip=False):  # type: ignore[no-untyped-def]
        if np.stack(images).any():
            raise RuntimeError("no")
        return super().run(images, flip)


@pytest.fixture
def server() -> Iterator[RunningServer]:
    load = several(one=(ColourEngine(), SMALL), two=(ColourEngine(), LARGE))
    with run_server(load, Settings()) as running:
        yield running


def post(server: RunningServer, query: str, body: bytes = IMAGE) -> httpx.Response:
    return server.client.post(f"/detect/models?{query}", content=body)


def test_each_part_is_what_the_model_returns_alone(server: RunningServer) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 16, (700, 900, 3), np.uint8)
    # Reduced for `one`, not for `two`: their decoded pixels differ.
    for body in (IMAGE, encode(noise, "JPEG"), encode(noise)):
        for query in ("models=two,one&top_k=2", "models=two&models=one&top_k=2"):
            results = post(server, query, body).json()["results"]
            for name, part in zip(("two", "one"), results, strict=True):
                alone = server.client.post(f"/models/{name}/detect?top_k=2", content=body).json()
                assert part["model"] == {"name": name, "version": "1"}
                assert (part["image"], part["detections"]) == (alone["image"], alone["detections"])
                assert list(part["timing_ms"]) == list(alone["timing_ms"])


def test_an_image_is_decoded_once_for_each_reduction(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reductions: list[int] = []
    decode = OpenedImage.decode

    def record(image: OpenedImage, reduction: int = 1):  # type: ignore[no-untyped-def]
        reductions.append(reduction)
        return decode(image, reduction)

    monkeypatch.setattr(OpenedImage, "decode", record)
    assert post(server, "models=one,two").status_code == 200
    assert reductions == [1]
    pixels = np.zeros((700, 900, 3), np.uint8)
    assert post(server, "models=one,two", encode(pixels, "JPEG")).status_code == 200
    assert sorted(reductions[1:]) == [2, 8]


def test_a_model_that_fails_does_not_affect_the_others() -> None:
    load = several(bad=(FailingEngine(), SMALL), good=(ColourEngine(), SMALL))
    with run_server(load, Settings()) as server:
        failed, found = post(server, "models=bad,good").json()["results"]
        assert (failed["status"], failed["code"]) == (500, "engine_failed")
        assert failed["detail"].startswith("Model bad: ")
        alone = server.client.post("/models/good/detect", content=IMAGE).json()
        assert found["detections"] == alone["detections"]
        assert server.metric("centernet_request_errors_total", code="engine_failed") == 1


def test_an_image_that_cannot_be_decoded_is_an_error_of_the_request(server: RunningServer) -> None:
    assert_problem(post(server, "models=one,two", IMAGE[:60]), 400, "bad_image")
    assert_problem(post(server, "models=one,two", b"text"), 415, "unsupported_image")


@pytest.mark.parametrize(
    ("query", "status", "code", "text"),
    [
        ("", 422, "invalid_option", "received 0 names"),
        ("models=" + ",".join(map(str, range(17))), 422, "invalid_option", "received 17 names"),
        ("models=one,one", 422, "invalid_option", "Give each name once"),
        ("models=one,three", 404, "unknown_model", "'three'"),
        ("models=one&model=two", 422, "invalid_option", "model"),
        ("models=one&format=coco", 422, "invalid_option", "accepted is one of json"),
        ("models=one&classes=pink", 422, "invalid_option", "'pink'"),
    ],
)
def test_errors_in_the_query(
    server: RunningServer, query: str, status: int, code: str, text: str
) -> None:
    assert text in str(assert_problem(post(server, query), status, code)["detail"])


def test_all_models_admit_a_request_or_none() -> None:
    busy, idle = GatedEngine(), ColourEngine()
    load = several(idle=(idle, SMALL), busy=(busy, SMALL))
    with run_server(load, Settings(max_queue_size=1)) as server, ThreadPoolExecutor(1) as clients:
        waiting = clients.submit(server.client.post, "/models/busy/detect", content=IMAGE)
        assert busy.entered.acquire(timeout=10)
        runs = len(idle.batch_sizes)
        assert_problem(post(server, "models=idle,busy"), 429, "queue_full")
        models = server.state.loader.models
        assert models.get("idle").admission.admitted == 0
        assert len(idle.batch_sizes) == runs
        busy.gate.set()
        assert waiting.result().status_code == 200
        assert post(server, "models=idle,busy").status_code == 200
        wait_until(lambda: models.get("busy").admission.admitted == 0)


def test_a_fast_model_is_free_before_a_slow_one_ends() -> None:
    slow = GatedEngine()
    load = several(fast=(ColourEngine(), SMALL), slow=(slow, SMALL))
    with run_server(load, Settings()) as server, ThreadPoolExecutor(1) as clients:
        waiting = clients.submit(post, server, "models=fast,slow")
        assert slow.entered.acquire(timeout=10)
        models = server.state.loader.models
        wait_until(lambda: models.get("fast").admission.admitted == 0)
        assert models.get("slow").admission.admitted == 1
        slow.gate.set()
        assert len(waiting.result().json()["results"]) == 2


def test_models_of_different_tasks() -> None:
    def load(settings: Settings, metrics: Metrics) -> ModelRegistry:
        pool = open_image_pool(settings, metrics)
        boxes = make_async_detector(make_manifest(), ColourEngine(), pool, settings, metrics)
        manifest = make_manifest(POSES).model_copy(update={"name": "poses"})
        poses = make_async_detector(manifest, FixedEngine(POSE_ROWS), pool, settings, metrics)
        return ModelRegistry({"painted": boxes, "poses": poses}, "painted", pool)

    with run_server(load, Settings()) as server:
        boxes, poses = post(server, "models=painted,poses").json()["results"]
        assert "keypoints" not in boxes["detections"][0]
        assert len(poses["detections"][0]["keypoints"]) == 2
