"""Throughput of the CPU engines alone, relative to ONNX Runtime in fp32.

    python -m benchmarks.cpu_engines models/blood_cells models/people models/road_vehicles

The engines of a model alternate within each round, so that other load on the machine affects all of
them; ratios are taken within a round. Set ``ONEDNN_MAX_CPU_ISA`` to restrict the instructions of
OpenVINO (ONNX Runtime does not read it).
"""

import argparse
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.cpu import CPU_ENGINES_WITH_INT8, describe_cpu
from benchmarks.quartiles import format_quartiles
from model_package import ModelPackage, load_package
from service.cpu_cores import available_cores
from service.engines import Engine, EngineUnavailableError, open_engine
from service.self_test import draw_test_image


@dataclass(frozen=True)
class Rate:
    """Throughput of one engine in one round."""

    images_per_s: float
    images_per_cpu_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("packages", nargs="+", type=Path, metavar="PACKAGE")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="per engine and round")
    args = parser.parse_args()
    cores = available_cores()
    print(f"{describe_cpu()}, ")
    print(f"ONEDNN_MAX_CPU_ISA: {os.environ.get('ONEDNN_MAX_CPU_ISA', 'not set')}, "
          f"batch size {args.batch_size}, {args.rounds} rounds of {args.seconds:g} s")  # fmt: skip
    print("| model | input | engine | images/s | of the reference | images per CPU second "
          "| of the reference |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for path in args.packages:
        package = load_package(path)
        engines = _open_engines(package, cores)
        rates = _measure(package, engines, args.batch_size, args.rounds, args.seconds)
        _print_rows(package, engines, rates)
        for engine in engines:
            engine.close()


def _open_engines(package: ModelPackage, cores: int) -> list[Engine]:
    """Open every engine, ONNX Runtime first, with one single-threaded run per core."""
    engines = []
    for backend, precision in CPU_ENGINES_WITH_INT8.values():
        try:
            engines.append(open_engine(package, backend, 1, cores, precision=precision))
        except EngineUnavailableError as error:
            print(f"{package.manifest.name}, {backend} {precision}: {error}")
    return engines


def _measure(
    package: ModelPackage, engines: Sequence[Engine], batch_size: int, rounds: int, seconds: float
) -> list[list[Rate]]:
    """Return the rates of every engine, in the order of the rounds."""
    spec = package.manifest.input
    image = draw_test_image(spec.height_px, spec.width_px)
    images = np.repeat(image[np.newaxis], batch_size, axis=0)
    rates: list[list[Rate]] = [[] for _ in engines]
    order = list(range(len(engines)))
    for index in order:
        _run(engines[index], images, 0)  # compiles kernels for this shape
    for _ in range(rounds):
        random.shuffle(order)
        for index in order:
            rates[index].append(_run(engines[index], images, seconds))
    return rates


def _run(engine: Engine, images: NDArray[np.uint8], seconds: float) -> Rate:
    """Run batches in as many threads as the engine accepts."""

    def run_repeatedly() -> int:
        count = 0
        while not count or time.perf_counter() < end_at:
            engine.run(images)
            count += len(images)
        return count

    began_at, cpu_began = time.perf_counter(), time.process_time()
    end_at = began_at + seconds
    with ThreadPoolExecutor(engine.concurrency) as threads:
        workers = [threads.submit(run_repeatedly) for _ in range(engine.concurrency)]
        count = sum(worker.result() for worker in workers)
    return Rate(count / (time.perf_counter() - began_at), count / (time.process_time() - cpu_began))


def _print_rows(
    package: ModelPackage, engines: Sequence[Engine], rates: Sequence[Sequence[Rate]]
) -> None:
    spec = package.manifest.input
    for engine, own in zip(engines, rates, strict=True):
        pairs = list(zip(own, rates[0], strict=True))
        wall = [one.images_per_s / other.images_per_s for one, other in pairs]
        cpu = [one.images_per_cpu_s / other.images_per_cpu_s for one, other in pairs]
        cells = [
            package.manifest.name,
            f"{spec.width_px}x{spec.height_px}",
            engine.description,
            f"{np.median([rate.images_per_s for rate in own]):.1f}",
            format_quartiles(wall),
            f"{np.median([rate.images_per_cpu_s for rate in own]):.1f}",
            format_quartiles(cpu),
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
