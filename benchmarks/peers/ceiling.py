"""The most images per second that the CPU allows, and what an image's answer should be.

The ceiling is cores / (decode + warp + engine CPU seconds per image), each measured on one thread
with the service's own code and the best batch size: a server that reaches it spends nothing on
HTTP, queues, copies between processes or idle cores. Cores that work at the same time may be slower
than one alone (they share caches and memory), which that figure leaves out; so there is also what
a thread on each core gets done with the same parts, and nothing else. And since a faster decoder
raises the ceiling that its own server is measured by, there is the ceiling with the decoder that
the others use.
"""

import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.peers.shared.detector import Preparer
from model_package import load_package
from service.decoders import ModelOutput, make_decoder
from service.imaging.geometry import ImageTransform
from service.imaging.image_decoding import open_image
from service.imaging.resize import InputPlanner
from service.imaging.warp import warp_to_input
from service.option_rules import OptionRules
from service.options import DetectParameters

BATCH_SIZES = (1, 2, 4, 8)
_MAX_PIXELS = 50_000_000
SCORE_TOLERANCE = 1e-3
_BOX_TOLERANCE_PX = 0.5


@dataclass(frozen=True)
class Ceiling:
    """CPU milliseconds per image and what they allow."""

    prepare_ms: float
    peers_prepare_ms: float
    """With Pillow, as the peers do it."""
    engine_ms: float
    batch_size: int
    cores: int
    unserved_per_second: float
    """Images per second of one thread on each core, each decoding and running its own batches."""

    @property
    def images_per_second(self) -> float:
        """Cores divided by the seconds of one image."""
        return 1000 * self.cores / (self.prepare_ms + self.engine_ms)

    @property
    def peers_images_per_second(self) -> float:
        """The same for who decodes with Pillow."""
        return 1000 * self.cores / (self.peers_prepare_ms + self.engine_ms)

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            **asdict(self),
            "images_per_second": self.images_per_second,
            "peers_images_per_second": self.peers_images_per_second,
        }


class Pipeline:
    """Decode, warp, run, decode again: the service's parts in one thread, without a server."""

    def __init__(self, package: Path) -> None:
        self._peer = Preparer(package)
        loaded = load_package(package)
        manifest = loaded.manifest
        self._options = OptionRules(manifest).complete(DetectParameters())
        self._planner = InputPlanner(manifest, _MAX_PIXELS)
        self._decoder = make_decoder(manifest)
        self._names = [output.name for output in manifest.decoder.outputs()]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            loaded.path_of(manifest.artifacts[0]), options, providers=["CPUExecutionProvider"]
        )

    def prepare(self, body: bytes) -> tuple[NDArray[np.uint8], ImageTransform]:
        """The network's input for one image, and where the image lies in it."""
        image = open_image(body, _MAX_PIXELS)
        placed = self._planner.plan_inputs(image.width_px, image.height_px, self._options.inputs)[0]
        return warp_to_input(image.decode(), placed), placed

    def run(self, inputs: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """One engine run on uint8 (n, height, width, 3)."""
        values = self._session.run(self._names, {"images": inputs})
        return dict(zip(self._names, values, strict=True))

    def detect(self, body: bytes) -> list[dict[str, Any]]:
        """What a server should answer: class id, score and box in the image."""
        pixels, placed = self.prepare(body)
        rows = {name: values[0] for name, values in self.run(pixels[None]).items()}
        return self.decode(rows, placed)

    def decode(self, rows: dict[str, NDArray[Any]], placed: ImageTransform) -> list[dict[str, Any]]:
        """Class id, score and box in the image of what one row of each output says."""
        found = self._decoder.decode([ModelOutput(rows, placed)], self._options.detection)
        columns = (found.class_ids.tolist(), found.scores.tolist(), found.boxes_xyxy.tolist())
        return [
            {"class_id": class_id, "score": score, "bbox": box}
            for class_id, score, box in zip(*columns, strict=True)
        ]

    def best_batch_size(self, bodies: Sequence[bytes], seconds: float) -> int:
        """The one of ``BATCH_SIZES`` with the least CPU time per image."""
        share = seconds / len(BATCH_SIZES)
        return min(BATCH_SIZES, key=lambda size: self._engine_s(bodies, size, share))

    def ceiling(self, bodies: Sequence[bytes], batch_size: int, seconds: float) -> Ceiling:
        """Measure for about ``seconds``, sharing them between the parts."""
        share = seconds / 4
        prepare_s, peers_prepare_s = (
            statistics.median(_cpu_seconds(prepare, bodies, share / len(bodies)))
            for prepare in (self.prepare, self._peer.prepare)
        )
        cores = len(os.sched_getaffinity(0))
        return Ceiling(
            1000 * prepare_s,
            1000 * peers_prepare_s,
            1000 * self._engine_s(bodies, batch_size, share),
            batch_size,
            cores,
            self._unserved(bodies, batch_size, cores, share),
        )

    def _engine_s(self, bodies: Sequence[bytes], size: int, seconds: float) -> float:
        inputs = np.stack([self.prepare(body)[0] for body in bodies[:size]])
        return statistics.median(_cpu_seconds(self.run, [inputs], seconds)) / size

    def _unserved(self, bodies: Sequence[bytes], size: int, threads: int, seconds: float) -> float:
        def work(first: int) -> float:
            done, began_at = 0, time.perf_counter()
            while time.perf_counter() < began_at + seconds:
                batch = [bodies[(first + done + index) % len(bodies)] for index in range(size)]
                self.run(np.stack([self.prepare(body)[0] for body in batch]))
                done += size
            return done / (time.perf_counter() - began_at)

        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(work, range(threads)))


def _cpu_seconds(work: Any, inputs: Sequence[Any], seconds: float) -> list[float]:
    """Per input the median CPU seconds of this thread, of at least three runs after a first."""
    medians = []
    for one in inputs:
        work(one)
        taken: list[float] = []
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or len(taken) < 3:
            started = time.thread_time()
            work(one)
            taken.append(time.thread_time() - started)
        medians.append(statistics.median(taken))
    return medians


def matched_fraction(
    expected: Sequence[dict[str, Any]],
    found: Sequence[dict[str, Any]],
    threshold: float,
    score_tolerance: float = SCORE_TOLERANCE,
) -> float:
    """Return the fraction of the detections of both lists that have an equal in the other list.

    Detections within the tolerance of the threshold may be in one list only: engines with another
    number of threads sum in another order.
    """
    # Not labels.matching: equal means within pixels and scores, not by IoU, and several detections
    # may have the same equal.
    certain = [
        (one, other)
        for one_list, other in ((expected, found), (found, expected))
        for one in one_list
        if one["score"] >= threshold + score_tolerance
    ]
    if not certain:
        return 1.0
    return sum(
        any(_are_equal(one, two, score_tolerance) for two in other) for one, other in certain
    ) / len(certain)


def _are_equal(one: dict[str, Any], other: dict[str, Any], score_tolerance: float) -> bool:
    distances = (abs(a - b) for a, b in zip(one["bbox"], other["bbox"], strict=True))
    return (
        one["class_id"] == other["class_id"]
        and abs(one["score"] - other["score"]) <= score_tolerance
        and max(distances) <= _BOX_TOLERANCE_PX
    )
