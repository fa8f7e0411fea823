"""Upper bound of the throughput that the CPU allows, and the expected detections of an image.

The throughput ceiling is cores / (decode + warp + engine CPU seconds per image), each measured on
one thread with the code of the service, the engine that all servers run, and the best batch size.
A server at the ceiling spends no time on HTTP, queues, copies between processes or idle cores.

Cores that are busy at the same time may be slower than one alone, because they share caches and
memory; the ceiling does not account for that. The *no server* throughput does: it is measured with
one thread per core that runs the same steps and nothing else. A faster image decoder raises the
ceiling, so a second ceiling uses Pillow, the decoder of the other servers.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.comparison.shared.preparer import Preparer
from benchmarks.cpu import CpuEngine
from model_package import load_package
from service.cpu_cores import available_cores
from service.decoders import ModelOutput, make_decoder
from service.engines import open_engine
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
    """CPU milliseconds per image and the throughput that they allow."""

    prepare_ms: float
    """Decode and warp, with the decoder of the service."""
    pillow_prepare_ms: float
    """Decode and warp, with Pillow."""
    engine_ms: float
    batch_size: int
    cores: int
    no_server_images_per_second: float
    """Throughput of one thread per core that decodes and runs its own batches."""
    no_server_cpu_ms: float
    """CPU milliseconds per image of these threads."""

    @property
    def images_per_second(self) -> float:
        """The throughput ceiling with the decoder of the service."""
        return 1000 * self.cores / (self.prepare_ms + self.engine_ms)

    @property
    def pillow_images_per_second(self) -> float:
        """The throughput ceiling with Pillow."""
        return 1000 * self.cores / (self.pillow_prepare_ms + self.engine_ms)

    def as_json(self) -> dict[str, Any]:
        """Return all fields and both ceilings."""
        return {
            **asdict(self),
            "images_per_second": self.images_per_second,
            "pillow_images_per_second": self.pillow_images_per_second,
        }


class Pipeline:
    """Decode, warp, inference and decoding of detections, without a server.

    Runs compute in one thread each; as many threads as there are cores may call the methods.
    """

    def __init__(self, package: Path, engine: CpuEngine) -> None:
        self._pillow = Preparer(package)
        loaded = load_package(package)
        manifest = loaded.manifest
        self._options = OptionRules(manifest).complete(DetectParameters())
        self._planner = InputPlanner(manifest, _MAX_PIXELS)
        self._decoder = make_decoder(manifest)
        self.cores = available_cores()
        self._engine = open_engine(
            loaded, engine.backend, 1, self.cores, precision=engine.precision
        )

    def prepare(self, body: bytes) -> tuple[NDArray[np.uint8], ImageTransform]:
        """Return the network input of an image, uint8 (height, width, 3), and its transform."""
        image = open_image(body, _MAX_PIXELS)
        transform = self._planner.plan_inputs(
            image.width_px, image.height_px, self._options.inputs
        )[0]
        return warp_to_input(image.decode(), transform), transform

    def run(self, inputs: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        """Run the engine on uint8 (n, height, width, 3)."""
        return self._engine.run(inputs)

    def detect(self, body: bytes) -> list[dict[str, Any]]:
        """Return the expected response: class id, score and box in image pixels."""
        pixels, transform = self.prepare(body)
        rows = {name: values[0] for name, values in self.run(pixels[None]).items()}
        return self.decode(rows, transform)

    def decode(
        self, rows: dict[str, NDArray[Any]], transform: ImageTransform
    ) -> list[dict[str, Any]]:
        """Decode the outputs of one image to class id, score and box in image pixels."""
        detections = self._decoder.decode([ModelOutput(rows, transform)], self._options.detection)
        columns = (
            detections.class_ids.tolist(),
            detections.scores.tolist(),
            detections.boxes_xyxy.tolist(),
        )
        return [
            {"class_id": class_id, "score": score, "bbox": box}
            for class_id, score, box in zip(*columns, strict=True)
        ]

    def best_batch_size(self, bodies: Sequence[bytes], seconds: float) -> int:
        """Return the batch size of ``BATCH_SIZES`` with the least CPU time per image."""
        share = seconds / len(BATCH_SIZES)
        return min(BATCH_SIZES, key=lambda size: self._engine_s(bodies, size, share))

    def ceiling(self, bodies: Sequence[bytes], batch_size: int, seconds: float) -> Ceiling:
        """Measure the ceiling for about ``seconds``, a quarter for each step."""
        share = seconds / 4
        prepare_s, pillow_prepare_s = (
            statistics.median(_cpu_seconds(prepare, bodies, share / len(bodies)))
            for prepare in (self.prepare, self._pillow.prepare)
        )
        return Ceiling(
            1000 * prepare_s,
            1000 * pillow_prepare_s,
            1000 * self._engine_s(bodies, batch_size, share),
            batch_size,
            self.cores,
            *self._no_server(bodies, batch_size, share),
        )

    def _engine_s(self, bodies: Sequence[bytes], size: int, seconds: float) -> float:
        inputs = np.stack([self.prepare(body)[0] for body in islice(cycle(bodies), size)])
        return statistics.median(_cpu_seconds(self.run, [inputs], seconds)) / size

    def _no_server(self, bodies: Sequence[bytes], size: int, seconds: float) -> tuple[float, float]:
        """Return the images per second and the CPU milliseconds per image."""

        def work(first: int) -> tuple[float, int]:
            done, started_at = 0, time.perf_counter()
            while time.perf_counter() < started_at + seconds:
                batch = [bodies[(first + done + index) % len(bodies)] for index in range(size)]
                self.run(np.stack([self.prepare(body)[0] for body in batch]))
                done += size
            return done / (time.perf_counter() - started_at), done

        began_s = time.process_time()
        with ThreadPoolExecutor(self.cores) as pool:
            rates, counts = zip(*pool.map(work, range(self.cores)), strict=True)
        return sum(rates), 1000 * (time.process_time() - began_s) / sum(counts)


def _cpu_seconds(work: Any, inputs: Sequence[Any], seconds: float) -> list[float]:
    """Return per input the median CPU time of at least three calls, after a warm-up.

    It is that of the process: OpenVINO computes in threads of its own.
    """
    medians = []
    for value in inputs:
        work(value)
        samples: list[float] = []
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or len(samples) < 3:
            started_at = time.process_time()
            work(value)
            samples.append(time.process_time() - started_at)
        medians.append(statistics.median(samples))
    return medians


def matched_fraction(
    expected: Sequence[dict[str, Any]],
    detections: Sequence[dict[str, Any]],
    threshold: float,
    score_tolerance: float = SCORE_TOLERANCE,
) -> float:
    """Return the fraction of the detections of both lists that have an equal in the other list.

    Detections within ``score_tolerance`` of the threshold are ignored if they are in one list only:
    engines with a different number of threads add in a different order.
    """
    # Not labels.matching: equal means within pixels and scores, not by IoU, and several detections
    # may have the same equal.
    certain = [
        (one, other)
        for one_list, other in ((expected, detections), (detections, expected))
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
