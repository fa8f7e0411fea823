"""Measurement of the curves. The points of a curve alternate within each round."""

import random
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from benchmarks.comparison.workload import make_images
from benchmarks.cpu import CPU_ENGINES_WITH_INT8
from benchmarks.curves.curve import Point
from benchmarks.endurance.service import BUNDLED, run_service
from benchmarks.load import LoadError, Record, Target, closed_loop, open_loop, read_records
from model_package import draft_package, load_package

CONNECTIONS = 32
"""Connections of the closed loops."""
LOAD = 0.8
"""Rate of the open loops as a fraction of the throughput of the closed loop before."""
WARMUP_S = 0.5
"""Excluded from each measurement."""
BATCH_SIZES = (1, 2, 4, 8)
MODEL_COUNTS = (1, 2, 4, 8)
IMAGE_SIZES = ((640, 480), (1280, 720), (1920, 1080), (4000, 3000))
LOADS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.2)
"""Offered loads as fractions of the throughput of the fastest engine."""

_ENGINE_TITLES = {
    "onnxruntime-fp32": "ONNX Runtime, fp32",
    "openvino-fp32": "OpenVINO, fp32",
    "openvino-bf16": "OpenVINO, bf16",
    "openvino-int8": "OpenVINO, int8",
}


class Sample(NamedTuple):
    """One measurement of a point; the p99 is None if it would be that of too few responses."""

    images_per_s: float
    p99_ms: float | None


Measure = Callable[[int], Sample]
"""Measures a point once; the argument is the seed of the arrivals."""


def measure_load(work: Path, rounds: int, seconds: float) -> dict[str, list[Point]]:
    """Measure the service with the reference engine and the fastest ones over the offered load."""
    images = make_images(*IMAGE_SIZES[0], work)
    with ExitStack() as stack:
        targets = {
            _ENGINE_TITLES[name]: stack.enter_context(
                _serve(BUNDLED, images, *_engine_options(name))
            )
            for name in ("onnxruntime-fp32", "openvino-bf16", "openvino-int8")
        }
        fastest = max(_closed_loop_rate(target, seconds) for target in targets.values())
        return run_rounds(
            {
                (title, rate): partial(_at_rate, target, rate, seconds)
                for title, target in targets.items()
                for rate in (round(load * fastest, 1) for load in LOADS)
            },
            rounds,
        )


def measure_image_size(work: Path, rounds: int, seconds: float) -> dict[str, list[Point]]:
    """Measure JPEGs of several sizes, decoded at a fraction of their size and at full size."""
    images = {size: make_images(*size, work) for size in IMAGE_SIZES}
    with ExitStack() as stack:
        targets = {}
        for title, value in (("scaled decoding", "true"), ("full decoding", "false")):
            service = _serve(BUNDLED, images[IMAGE_SIZES[0]], "--scaled-decoding", value)
            target = stack.enter_context(service)
            for (width_px, height_px), bodies in images.items():
                targets[title, width_px * height_px / 1e6] = replace(target, bodies=bodies)
        return _run_at_own_load(targets, rounds, seconds)


def measure_batch_size(work: Path, rounds: int, seconds: float) -> dict[str, list[Point]]:
    """Measure each engine with several maximum batch sizes."""
    images = make_images(*IMAGE_SIZES[0], work)
    with ExitStack() as stack:
        targets = {}
        for name, title in _ENGINE_TITLES.items():
            for size in BATCH_SIZES:
                options = (*_engine_options(name), "--max-batch-size", str(size))
                targets[title, size] = stack.enter_context(_serve(BUNDLED, images, *options))
        return _run_at_own_load(targets, rounds, seconds)


def measure_models(work: Path, rounds: int, seconds: float) -> dict[str, list[Point]]:
    """Measure a service with several models, all or one of which get the requests."""
    images = make_images(*IMAGE_SIZES[0], work)
    with ExitStack() as stack:
        targets = {}
        for count in MODEL_COUNTS:
            directory = Path(stack.enter_context(TemporaryDirectory()))
            names = _copy_package(directory, count)
            one = stack.enter_context(_serve(directory, images, "--default-model", names[0]))
            others = [f"/models/{name}/detect" for name in names[1:]]
            targets["requests to one model", count] = one
            targets["requests to all models in turn", count] = replace(one, other_paths=others)
        return _run_at_own_load(targets, rounds, seconds)


def run_rounds(
    measurements: Mapping[tuple[str, float], Measure], rounds: int
) -> dict[str, list[Point]]:
    """Measure all points once in each round, in random order; return the points of each series.

    The keys are the series and the position on the horizontal axis.
    """
    points = {(series, x): Point(x) for series, x in measurements}
    order = list(points)
    for number in range(rounds):
        random.shuffle(order)
        for key in order:
            sample = measurements[key](number)
            points[key].images_per_s.append(sample.images_per_s)
            if sample.p99_ms is not None:
                points[key].p99_ms.append(sample.p99_ms)
            print(number, *key, sample, file=sys.stderr, flush=True)
    by_series: dict[str, list[Point]] = {}
    for (series, _), point in points.items():
        by_series.setdefault(series, []).append(point)
    return by_series


def sample_of(records: Iterable[Record], from_s: float, to_s: float) -> Sample:
    """Return the responses with status 200 per second and their p99.

    Counted are the responses that arrived from ``from_s`` to ``to_s``, in seconds since the start,
    and not the requests: at overload the queue grows, and its requests are answered later. The p99
    is that of the requests scheduled in this time.
    """
    accepted = [record for record in records if record.status == 200]
    arrivals_s = [record.scheduled_s + record.latency_ms / 1000 for record in accepted]
    count = sum(from_s <= at < to_s for at in arrivals_s)
    latencies_ms = [one.latency_ms for one in accepted if from_s <= one.scheduled_s < to_s]
    p99_ms = float(np.percentile(latencies_ms, 99, method="inverted_cdf")) if latencies_ms else None
    return Sample(count / (to_s - from_s), p99_ms)


def _at_rate(target: Target, rate: float, seconds: float, seed: int) -> Sample:
    with TemporaryDirectory() as directory:
        records = Path(directory) / "records"
        open_loop(target, WARMUP_S + seconds, rate, seed=seed, records=records)
        return sample_of(read_records(records), WARMUP_S, WARMUP_S + seconds)


def _run_at_own_load(
    targets: Mapping[tuple[str, float], Target], rounds: int, seconds: float
) -> dict[str, list[Point]]:
    """Measure the throughput of a closed loop, then the p99 at a fraction of it.

    There is no p99 if a request failed or was rejected.
    """

    def measure(target: Target, seed: int) -> Sample:
        rate = _closed_loop_rate(target, seconds)
        load = open_loop(target, seconds, LOAD * rate, seed=seed, warmup_s=WARMUP_S)
        return Sample(rate, load.ok.latency_ms.p99 if load.ok and load.all_ok else None)

    return run_rounds({key: partial(measure, target) for key, target in targets.items()}, rounds)


def _closed_loop_rate(target: Target, seconds: float) -> float:
    load = closed_loop(target, seconds, CONNECTIONS, warmup_s=WARMUP_S)
    if not load.all_ok:
        raise LoadError(f"some requests of the closed loop did not succeed: {load}")
    return load.images_per_second


@contextmanager
def _serve(models: Path, images: Sequence[Path], *options: str) -> Iterator[Target]:
    """Run the service; the periodic self-test is off, since it runs in idle services too."""
    with run_service("--self-test-interval-s", "0", *options, package=models) as service:
        yield Target(service.port, "/detect", images)


def _engine_options(name: str) -> tuple[str, ...]:
    backend, precision = CPU_ENGINES_WITH_INT8[name]
    return ("--backend", backend, "--precision", precision)


def _copy_package(directory: Path, count: int) -> list[str]:
    """Publish copies of the bundled package under other names, which are returned."""
    package = load_package(BUNDLED)
    names = [f"{package.manifest.name}_{number}" for number in range(count)]
    for name in names:
        with draft_package(directory / name) as draft:
            shutil.copytree(package.directory, draft.directory, dirs_exist_ok=True)
            draft.publish(package.manifest.model_copy(update={"name": name}))
    return names
