"""What serving costs: images per second of the bare engine, the batcher and HTTP, in one run.

    python -m benchmarks.served_vs_bare models/blood_cells docs/samples/*.jpg

The batcher gets inputs that are ready, so many at all times that every worker has a batch and the
next; HTTP gets the images, from as many connections, with client and service on the same cores.
All take turns; the ratios are medians over the rounds.
"""

import argparse
import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.endurance.service import running
from benchmarks.load import Target, closed_loop
from model_package import load_package
from service.batching.batcher import Batcher
from service.batching.latency_model import LatencyModel
from service.batching.types import BatchInput, BatchLimits
from service.detector import open_model_engine
from service.engines import Engine
from service.self_test import draw_test_image
from service.settings import Settings
from service.tune import BatchSizes, BorrowedEngine
from service.warmup import BatchTiming, time_batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-batch-size", type=int)
    given = parser.parse_args()
    package = load_package(given.package)
    settings = Settings(models=given.package, max_batch_size=given.max_batch_size)
    engine = open_model_engine(package, settings)
    manifest = package.manifest
    timings = time_batches(engine, manifest, given.max_batch_size or 8, 1.0)
    chosen = max(timings, key=lambda timing: timing.images_per_s)
    size = chosen.batch_size
    waiting = 2 * size * engine.concurrency
    image = BatchInput(draw_test_image(manifest.input.height_px, manifest.input.width_px))
    print(f"{manifest.name}, {engine.description}, batches of {size}, {waiting} waiting")
    print("  bare images/s  batcher  of bare  p99 / full run  HTTP  of bare  p50 ms  p99 ms")
    batched, tails, served = [], [], []
    with running("--backend", "onnxruntime-cpu", package=given.package) as service:
        target = Target(service.port, "/detect", given.images)
        for _ in range(given.rounds):
            bare = bare_rate(engine, manifest.input.height_px, manifest.input.width_px, size, given)
            rate, p99_s = asyncio.run(serve(engine, chosen, image, waiting, given.seconds))
            over_http = closed_loop(target, given.seconds, waiting, warmup_s=1)
            if over_http.good is None or over_http.good.count != over_http.answered:
                raise RuntimeError(f"some images were refused: {over_http.statuses}")
            batched.append(rate / bare)
            tails.append(p99_s / (size * engine.concurrency / bare))
            served.append(over_http.images_per_second / bare)
            latency = over_http.good.latency_ms
            print(
                f"  {bare:13.2f}  {rate:7.2f}  {batched[-1]:7.3f}  {tails[-1]:14.2f}"
                f"  {over_http.images_per_second:4.1f}  {served[-1]:7.3f}"
                f"  {latency.p50:6.1f}  {latency.p99:6.1f}"
            )
    print(
        f"  medians: batcher {median(batched):.3f} of bare, p99 {median(tails):.2f} full runs; "
        f"HTTP {median(served):.3f} of bare"
    )


def bare_rate(
    engine: Engine, height_px: int, width_px: int, size: int, given: argparse.Namespace
) -> float:
    """Images per second of as many threads as the engine takes, each in a loop of full batches."""
    images = np.stack([draw_test_image(height_px, width_px)] * size)
    began_at = time.perf_counter()
    end_at = began_at + given.seconds

    def loop() -> int:
        done = 0
        while time.perf_counter() < end_at:
            engine.run(images)
            done += size
        return done

    with ThreadPoolExecutor(engine.concurrency) as threads:
        workers = [threads.submit(loop) for _ in range(engine.concurrency)]
        total = sum(worker.result() for worker in workers)
    return total / (time.perf_counter() - began_at)


async def serve(
    engine: Engine, timing: BatchTiming, image: BatchInput, waiting: int, seconds: float
) -> tuple[float, float]:
    """Images per second and the 99th percentile from arrival to outputs."""
    estimate = LatencyModel([(timing.batch_size, timing.run_s)])
    batcher = Batcher(
        BorrowedEngine(engine), BatchLimits(timing.batch_size), estimate, BatchSizes()
    )
    batcher.start()
    began_at = time.perf_counter()
    end_at = began_at + seconds
    latencies: list[float] = []

    async def client() -> None:
        while time.perf_counter() < end_at:
            asked_at = time.perf_counter()
            await batcher.submit([image])
            latencies.append(time.perf_counter() - asked_at)

    await asyncio.gather(*(client() for _ in range(waiting)))
    elapsed_s = time.perf_counter() - began_at
    await batcher.stop()
    return len(latencies) / elapsed_s, float(np.percentile(latencies, 99))


if __name__ == "__main__":
    main()
