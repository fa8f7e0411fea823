"""A real server on a real socket, over engines that the tests control."""

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

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
from service.http.state import ServiceState, state_of
from service.http.uvicorn_server import Server
from service.model_loader import ModelLoader
from service.model_registry import ModelRegistry
from service.observability.metrics import Metrics
from service.self_test import SelfTest
from service.settings import Settings

TOP_K = 5


BOXES = CenterBoxesDecoder(output_stride=4, top_k=TOP_K, score_threshold=0.3)


def make_manifest(
    decoder: Decoder = BOXES,
    input_spec: InputSpec | None = None,
    flips: tuple[bool, ...] = (False,),
) -> ModelManifest:
    """The manifest of a model ``painted``, 64 x 64 if not said otherwise."""
    return ModelManifest(
        name="painted",
        version="1",
        description="An engine of the tests",
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
    """Finds the mean colour: its outputs tell which image they belong to.

    Row i of each output has the score 0.9 - i / 10, class i % 3, and a center that is the mean
    red and green of the image.
    """

    description = "colour engine"
    concurrency = 1
    max_batch_size: int | None = None
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
        """Nothing is held."""


class GatedEngine(ColourEngine):
    """A colour engine that waits until the test opens its gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        self.entered.release()
        assert self.gate.wait(20), "the test forgot to open the gate"
        return super().run(images, flip)


class FixedEngine:
    """Gives every image the same outputs, and remembers what it was given.

    ``rows``: each output without the batch axis.
    """

    description = "fixed engine"
    concurrency = 1
    max_batch_size: int | None = None
    is_reference = True

    def __init__(self, rows: Mapping[str, NDArray[Any]]) -> None:
        self.rows = rows
        self.calls: list[tuple[NDArray[np.uint8], bool]] = []

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        self.calls.append((np.stack(images), flip))
        return {name: np.stack([row] * len(images)) for name, row in self.rows.items()}

    def close(self) -> None:
        """Nothing is held."""


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen within 10 s")


class RunningServer:
    """A server and a client for it."""

    def __init__(self, url: str, metrics: Metrics, server: Server) -> None:
        self.url = url
        self.metrics = metrics
        self._server = server
        self.state: ServiceState = state_of(server.app)
        self.client = httpx.Client(base_url=url, timeout=30)

    def stop(self) -> None:
        """What SIGTERM does."""
        self._server.handle_exit(signal.SIGTERM, None)

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def make_async_detector(
    manifest: ModelManifest,
    engine: Engine,
    pool: Executor,
    settings: Settings,
    metrics: Metrics,
    self_test: SelfTest | None = None,
) -> AsyncDetector:
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
    """A loader of the model ``painted`` over ``engine``."""

    def load(settings: Settings, metrics: Metrics) -> ModelRegistry:
        pool = ThreadPoolExecutor(settings.image_threads)
        detector = make_async_detector(manifest or make_manifest(), engine, pool, settings, metrics)
        return ModelRegistry({"painted": detector}, "painted", pool)

    return load


@contextmanager
def run_server(
    load: Callable[[Settings, Metrics], ModelRegistry], settings: Settings
) -> Iterator[RunningServer]:
    """Serve what ``load`` gives in a thread of this process."""
    metrics = Metrics()
    startup = ModelLoader(lambda _: load(settings, metrics))
    with run_startup(startup, settings, metrics) as running:
        while not startup.is_done:
            assert startup.error is None, f"the models were not loaded: {startup.error}"
            time.sleep(0.01)
        yield running


@contextmanager
def run_startup(
    startup: ModelLoader, settings: Settings, metrics: Metrics
) -> Iterator[RunningServer]:
    """Listen in a thread of this process, whatever becomes of the loading."""
    server = Server(create_app(startup, settings, metrics), settings)
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
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive(), "the server did not stop"


def ask_together(url: str, bodies: Sequence[bytes]) -> list[httpx.Response]:
    """Send every body to ``/detect`` by a client of its own, all at the same time."""
    barrier = threading.Barrier(len(bodies))

    def ask(body: bytes) -> httpx.Response:
        with httpx.Client(base_url=url, timeout=60) as client:
            barrier.wait()
            return client.post("/detect", content=body)

    with ThreadPoolExecutor(len(bodies)) as clients:
        return list(clients.map(ask, bodies))
