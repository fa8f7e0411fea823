"""The detector as a library: images in, detections out, without a server."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from support.images import encode
from support.serving import ColourEngine, GatedEngine, make_manifest

from model_package import PackageNotFoundError
from service.async_detector import AsyncDetector
from service.batching.types import SchedulingOptions
from service.decoders.types import Detections
from service.detector import Detector, Image, Prediction, load_detector
from service.engines import Images
from service.errors import (
    BadImageError,
    EmptyBodyError,
    EngineError,
    ImageSizeError,
    InvalidOptionError,
    UnsupportedImageError,
)
from service.image_pool import ImagePool
from service.observability.metrics import Metrics
from service.options import DetectParameters, validate_options
from service.self_test import draw_test_image
from service.settings import Settings

PIXELS = draw_test_image(300, 420)
PNG = encode(PIXELS)


@pytest.fixture(scope="module")
def detector(bundled: Path) -> Iterator[Detector]:
    with load_detector(bundled, backend="onnxruntime-cpu", engine_threads=1) as loaded:
        yield loaded


def assert_equal(received: Detections, expected: Detections) -> None:
    assert np.array_equal(received.boxes_xyxy, expected.boxes_xyxy)
    assert np.array_equal(received.scores, expected.scores)
    assert np.array_equal(received.class_ids, expected.class_ids)


def test_encoded_bytes_and_an_rgb_array_give_the_same_detections(detector: Detector) -> None:
    encoded = detector.detect(PNG, score_threshold=0)
    array = detector.detect(PIXELS, score_threshold=0)
    assert len(encoded.detections) == detector.manifest.decoder.top_k
    assert_equal(array.detections, encoded.detections)
    for prediction in (encoded, array):
        assert (prediction.image_width_px, prediction.image_height_px) == (420, 300)
        assert not prediction.orientation_applied
        assert set(prediction.stage_s) == {"prepare", "infer", "postprocess"}
        assert min(prediction.stage_s.values()) > 0


def test_options_default_to_those_of_the_model(detector: Detector) -> None:
    every = detector.detect(PIXELS, score_threshold=0).detections
    default = detector.detect(PIXELS).detections
    assert 0 < len(default) == (every.scores >= detector.manifest.decoder.score_threshold).sum()


def test_options_select_detections(detector: Detector) -> None:
    every = detector.detect(PIXELS, score_threshold=0).detections
    few = detector.detect(PIXELS, score_threshold=0, top_k=3).detections
    assert_equal(few, Detections(every.boxes_xyxy[:3], every.scores[:3], every.class_ids[:3]))
    class_name = detector.manifest.classes[int(every.class_ids[0])]
    of_class = detector.detect(PIXELS, score_threshold=0, classes=[class_name]).detections
    assert set(of_class.class_ids.tolist()) == {int(every.class_ids[0])}
    assert of_class.scores[0] == every.scores[0]


def test_each_scale_is_a_network_input() -> None:
    engine = ColourEngine()
    detector = Detector(make_manifest(), engine, max_image_pixels=10**6)
    detector.detect(PIXELS, scales=[0.5, 1, 1.5])
    assert engine.batch_sizes == [1, 1, 1], "each network input runs alone"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"top_k": 1000}, "returns at most 100 detections"),
        ({"score_threshold": 2}, "score_threshold: received '2'"),
        ({"classes": ["dog"]}, "classes: received 'dog'"),
        ({"flip": True}, "flip: received true"),
        ({"threshold": 0.5}, "threshold: received '0.5'. The options are score_threshold"),
    ],
)
def test_rejects_invalid_options(detector: Detector, options: dict[str, Any], error: str) -> None:
    with pytest.raises(InvalidOptionError, match=error):
        detector.detect(PIXELS, **options)


@pytest.mark.parametrize(
    "pixels",
    [PIXELS.astype(np.float32), PIXELS[..., 0], np.zeros((64, 64, 4), np.uint8), PIXELS[None]],
    ids=["float32", "gray", "rgba", "batch"],
)
def test_rejects_arrays_that_are_not_uint8_rgb(detector: Detector, pixels: Any) -> None:
    with pytest.raises(UnsupportedImageError, match="Pass uint8 RGB of shape") as caught:
        detector.detect(pixels)
    assert f"{pixels.dtype} of shape" in str(caught.value)


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (b"", EmptyBodyError),
        (b"no image", UnsupportedImageError),
        (PNG[:-1000], BadImageError),
        (PIXELS[:8], ImageSizeError),
    ],
)
def test_rejects_images_that_cannot_be_used(
    detector: Detector, image: Image, error: type[Exception]
) -> None:
    with pytest.raises(error):
        detector.detect(image)


def test_limits_the_pixels_of_an_image(bundled: Path) -> None:
    settings = {"backend": "onnxruntime-cpu", "engine_threads": 1}
    with load_detector(bundled, **settings, max_image_pixels=1000) as detector:
        for image in (PNG, PIXELS):
            with pytest.raises(ImageSizeError):
                detector.detect(image)


def test_closes_the_engine_at_the_end_of_the_block() -> None:
    class ClosableEngine(ColourEngine):
        is_closed = False

        def close(self) -> None:
            self.is_closed = True

    engine = ClosableEngine()
    with Detector(make_manifest(), engine, max_image_pixels=10**6) as detector:
        detector.detect(PIXELS)
        assert not engine.is_closed
    assert engine.is_closed


def test_load_detector_raises_for_a_missing_package_or_an_unknown_setting(
    bundled: Path, tmp_path: Path
) -> None:
    with pytest.raises(PackageNotFoundError):
        load_detector(tmp_path / "none")
    with pytest.raises(ValidationError, match="engine_thread"):
        load_detector(bundled, engine_thread=1)


@pytest.mark.parametrize("image", [PNG, PIXELS], ids=["bytes", "array"])
def test_the_asynchronous_detector_gives_the_same_detections(bundled: Path, image: Image) -> None:
    settings = Settings(models=bundled, backend="onnxruntime-cpu", engine_threads=1)
    detector = load_detector(bundled, backend="onnxruntime-cpu", engine_threads=1)
    expected = detector.detect(image, score_threshold=0)
    options = detector.rules.complete(validate_options(DetectParameters, {"score_threshold": 0}))

    async def detect(pool: ThreadPoolExecutor) -> Prediction:
        asynchronous = AsyncDetector(detector, pool, settings, Metrics())
        asynchronous.start()
        try:
            scheduling = SchedulingOptions(deadline_at=time.perf_counter() + 30)
            return await asynchronous.detect(image, options, scheduling)
        finally:
            await asynchronous.stop()

    with closing(ImagePool(1)) as pool:
        prediction = asyncio.run(detect(pool))
    assert_equal(prediction.detections, expected.detections)
    assert (prediction.image_width_px, prediction.image_height_px) == (420, 300)
    assert (prediction.batch_size, prediction.trigger) == (1, "idle")
    assert set(prediction.stage_s) == {"decode_queue", "prepare", "queue", "infer", "postprocess"}


class FailingEngine(ColourEngine):
    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        raise RuntimeError(f"out of memory with {len(images)} images, flip {flip}")


class NanEngine(ColourEngine):
    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        outputs = dict(super().run(images, flip))
        return {**outputs, "scores": np.full_like(outputs["scores"], np.nan)}


@pytest.mark.parametrize(
    ("engine", "reason"), [(FailingEngine(), "out of memory"), (NanEngine(), "not finite")]
)
def test_a_failing_engine_raises_an_engine_error(engine: ColourEngine, reason: str) -> None:
    detector = Detector(make_manifest(), engine, max_image_pixels=10_000_000)
    with pytest.raises(EngineError, match=reason):
        detector.detect(PNG)


def test_concurrent_runs_do_not_exceed_the_engine_s_limit() -> None:
    engine = GatedEngine()
    detector = Detector(make_manifest(), engine, max_image_pixels=10_000_000)
    with ThreadPoolExecutor(3) as threads:
        predictions = [threads.submit(detector.detect, PNG) for _ in range(3)]
        assert engine.entered.acquire(timeout=10)
        assert not engine.entered.acquire(timeout=0.2)
        engine.gate.set()
        assert len([prediction.result(20) for prediction in predictions]) == 3
