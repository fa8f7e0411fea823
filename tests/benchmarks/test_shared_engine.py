"""Batches in shared memory, run by the process that owns the engine."""

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from benchmarks.endurance.service import IMAGES, PROJECT, run_service
from benchmarks.shared_engine import FRONT_ENGINE, RemoteEngine, engine_process, front_program
from model_package import load_package
from service.detector import load_detector
from service.engines.backends import open_engine
from service.engines.errors import EngineBrokenError

PACKAGE = PROJECT / "models" / "people"


@pytest.fixture
def owner() -> Iterator[tuple[int, str]]:
    """Process id and address of a process that owns the engine."""
    with engine_process(PACKAGE, FRONT_ENGINE) as process:
        yield process


def test_concurrent_batches_have_the_outputs_of_the_engine(owner: tuple[int, str]) -> None:
    package = load_package(PACKAGE)
    spec = package.manifest.input
    generator = np.random.default_rng(1)
    batches = [
        generator.integers(0, 256, (size, spec.height_px, spec.width_px, 3), np.uint8)
        for size in (1, 3, 8, 2)
    ]
    local = open_engine(package, FRONT_ENGINE.backend, threads=1)
    remote = RemoteEngine(package, owner[1])
    with ThreadPoolExecutor(len(batches)) as threads:  # more than slots
        results = list(threads.map(remote.run, batches))
    for batch, outputs in zip(batches, results, strict=True):
        for name, expected in local.run(batch).items():
            np.testing.assert_array_equal(outputs[name], expected)
    remote.close()
    local.close()


def test_an_error_of_a_run_is_raised_in_the_front(owner: tuple[int, str]) -> None:
    package = load_package(PACKAGE)
    spec = package.manifest.input
    remote = RemoteEngine(package, owner[1])
    image = np.zeros((1, spec.height_px, spec.width_px, 3), np.uint8)
    with pytest.raises(RuntimeError, match="KeyError"):
        remote.run(image, flip=True)  # the package has no such file
    assert len(remote.run(image)["scores"]) == 1
    os.kill(owner[0], signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(EngineBrokenError, match="has ended"):
            remote.run(image)
    remote.close()


def test_a_front_serves_with_the_engine_of_another_process(owner: tuple[int, str]) -> None:
    image = IMAGES[0].read_bytes()
    with load_detector(PACKAGE, backend=FRONT_ENGINE.backend) as detector:
        expected = detector.detect(image, score_threshold=0.01).detections.boxes_xyxy.round(3)
    options = ("--backend", FRONT_ENGINE.backend)
    with run_service(*options, package=PACKAGE, program=front_program(owner[1])) as front:
        url = f"http://127.0.0.1:{front.port}/detect?score_threshold=0.01"
        request = urllib.request.Request(url, image, {"Content-Type": "image/jpeg"})
        with urllib.request.urlopen(request, timeout=60) as response:
            detections = json.load(response)["detections"]
    assert len(expected)
    assert [detection["bbox"] for detection in detections] == expected.tolist()
