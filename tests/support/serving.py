"""Servers on real sockets, with engines that the tests control."""

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import httpx
import numpy as np
from numpy.typing import NDArray

from model_package import (
    CenterBoxesDecoder,
    Decoder,
    InputSpec,
    ModelManifest,
    OnnxArtifact,
    Provenance,
    Verification,
)
from service.app import create_app
from service.async_detector import AsyncDetector
from service.detector import Detector
from service.engines import Engine, Images
from service.engines.precision import ComputePrecision
from service.http import uvicorn_server
from service.http.state import state_of
from service.http.uvicorn_server import Server
from service.image_pool import ImagePool
from service.model_loader import ModelLoader
from service.model_registry import ModelRegistry, open_image_pool
from service.observability.metrics import Metrics
from service.self_test import SelfTest
from service.settings import Settings
from service.state import ServiceState

TOP_K = 5
BOXES = CenterBoxesDecoder(output_stride=4, top_k=TOP_K, score_threshold=0.3)


def make_manifest(
    decoder: Decoder = BOXES,
    input_spec: InputSpec | None = None,
    flips: tuple[bool, ...] = (False,),
) -> ModelManifest:
    """Return the manifest of a model ``painted``; its input is 64 x 64 by default."""
    return ModelManifest(
        name="painted",
        version="1",
        description="A model of the tests",
        classes=("red", "green", "blue"),
        input=input_spec or InputSpec(width_px=64, height_px=64),
        decoder=decoder,
        artifacts=tuple(
            OnnxArtifact(
                file=f"model{'_flip' * flip}.onnx",
                precision="fp32",
                flip=flip,
                sha256="0" * 64,
                size_bytes=1,
            )
            for flip in flips
        ),
        provenance=Provenance(
            architecture="none",
            checkpoint_sha256="0" * 64,
            source="tests",
            license="none",
            normalization="none",
            tools={},
        ),
        verification=Verification(
            reference="none", inputs=1, tolerances={}, worst_errors={}, matched_fraction=1.0
        ),
    )


class ColourEngine:
    """Engine whose outputs depend on the mean colour of the image, which identifies the image.

    Row i of each output has the score 0.9 - i / 10, class i % 3, and a center that is the mean
    red and green of the image.
    """

    description = "colour engine"
    concurrency = 1
    max_batch_size: int | None = None
    precision: ComputePrecision = "fp32"
    is_reference = True

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        del flip
        self.batch_sizes.append(len(images))
        means = np.stack(images).reshape(len(images), -1, 3).mean(axis=1, dtype=np.float64)
        n = len(images)
        return {
            "scores": np.tile(0.9 - np.arange(TOP_K, dtype=np.float32) / 10, (n, 1)),
            "class_ids": np.tile(np.arange(TOP_K, dtype=np.int32) % 3, (n, 1)),
            "centers": np.repeat(means[:, None, :2], TOP_K, axis=1).astype(np.float32),
            "sizes": np.full((n, TOP_K, 2), 2, np.float32),
        }

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


class GatedEngine(ColourEngine):
    """Colour engine whose runs wait until the test opens ``gate``; ``entered`` counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        self.entered.release()
        assert self.gate.wait(20), "the test did not open the gate"
        return super().run(images, flip)


class FixedEngine:
    """Engine that returns the same outputs for every image, and records its calls.

    ``rows``: the outputs without the batch axis.
    """

    description = "fixed engine"
    concurrency = 1
    max_batch_size: int | None = None
    precision: ComputePrecision = "fp32"
    is_reference = True

    def __init__(self, rows: Mapping[str, NDArray[Any]]) -> None:
        self.rows = rows
        self.calls: list[tuple[NDArray[np.uint8], bool]] = []

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        self.calls.append((np.stack(images), flip))
        return {name: np.stack([row] * len(images)) for name, row in self.rows.items()}

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def wait_until(condition: Callable[[], bool], seconds: int = 10) -> None:
    """Wait until ``condition()`` is true; fail after the given time."""
    for _ in range(100 * seconds):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"the condition was not met within {seconds} s")


class RunningServer:
    """A running server, and a client of it."""

    def __init__(self, url: str, metrics: Metrics, server: Server) -> None:
        self.url = url
        self.metrics = metrics
        self._server = server
        self.state: ServiceState = state_of(server.app)
        self.client = httpx.Client(base_url=url, timeout=30)

    def stop(self) -> None:
        """Shut down as on SIGTERM."""
        self._server.handle_exit(signal.SIGTERM, None)

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the event loop of the server and return its result."""
        assert self._server._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._server._loop).result(60)

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the series with these labels; 0 if there is none."""
        return sum(
            sample.value
            for metric in self.metrics.registry.collect()
            for sample in metric.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, object]:
    """Check an error response, and return its problem document."""
    assert response.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, object] = response.json()
    assert (response.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert problem["type"] == f"urn:centernet-serving:problem:{code}"
    assert problem["request_id"] == response.headers["X-Request-ID"]
    assert len(str(problem["detail"])) > 30
    return problem


def make_async_detector(
    manifest: ModelManifest,
    engine: Engine,
    pool: ImagePool,
    settings: Settings,
    metrics: Metrics,
    self_test: SelfTest | None = None,
) -> AsyncDetector:
    """Return a detector that has not been started."""
    detector = Detector(
        manifest,
        engine,
        max_image_pixels=settings.max_image_pixels,
        scaled_decoding=settings.scaled_decoding,
    )
    return AsyncDetector(detector, pool, settings, metrics, self_test)


def one_model(
    engine: Engine, manifest: ModelManifest | None = None
) -> Callable[[Settings, Metrics], ModelRegistry]:
    """Return a function that loads one model, by default ``painted``, with ``engine``."""

    def load(settings: Settings, metrics: Metrics) -> ModelRegistry:
        pool, served = open_image_pool(settings, metrics), manifest or make_manifest()
        detector = make_async_detector(served, engine, pool, settings, metrics)
        return ModelRegistry({served.name: detector}, served.name, pool)

    return load


@contextmanager
def run_server(
    load: Callable[[Settings, Metrics], ModelRegistry], settings: Settings
) -> Iterator[RunningServer]:
    """Serve the models of ``load`` in a thread of this process; they are loaded already."""
    metrics = Metrics()
    loader = ModelLoader(lambda _: load(settings, metrics))
    with run_server_with_loader(loader, settings, metrics) as running:
        while not loader.is_done:
            assert loader.error is None, f"the models were not loaded: {loader.error}"
            time.sleep(0.01)
        yield running


@contextmanager
def run_server_with_loader(
    loader: ModelLoader, settings: Settings, metrics: Metrics
) -> Iterator[RunningServer]:
    """Serve in a thread of this process, without waiting for the models to be loaded."""
    server = Server(create_app(loader, settings, metrics), settings)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the server did not start"
                time.sleep(0.01)
            port = listener.getsockname()[1]
            running = RunningServer(f"http://127.0.0.1:{port}", metrics, server)
            with running.client:
                yield running
        finally:
            # No client is left that could send a request on an idle connection.
            with patch.object(uvicorn_server, "IDLE_CLOSE_DELAY_S", 0.0):
                server.should_exit = True
                thread.join(30)
            assert not thread.is_alive(), "the server did not stop"


def post_concurrently(url: str, bodies: Sequence[bytes]) -> list[httpx.Response]:
    """Send every body to ``/detect`` at the same time, each with its own client."""
    barrier = threading.Barrier(len(bodies))

    def post(body: bytes) -> httpx.Response:
        with httpx.Client(base_url=url, timeout=60) as client:
            barrier.wait()
            return client.post("/detect", content=body)

    with ThreadPoolExecutor(len(bodies)) as clients:
        return list(clients.map(post, bodies))
