"""Measure the serving overhead: throughput of the engine, of the batcher and over HTTP.

    python -m benchmarks.serving_overhead models/blood_cells docs/samples/*.jpg

The batcher gets preprocessed inputs, enough for two full batches per worker at any time. HTTP
clients send encoded images on the same number of connections and share the cores with the service.
The three are measured in alternating turns; the ratios are medians over the rounds.
"""

import argparse
import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.endurance.service import run_service
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
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-batch-size", type=int)
    args = parser.parse_args()
    package = load_package(args.package)
    settings = Settings(models=args.package, max_batch_size=args.max_batch_size)
    engine, _ = open_model_engine(package, settings)
    manifest = package.manifest
    timings = time_batches(engine, manifest, args.max_batch_size or 8, 1.0)
    fastest = max(timings, key=lambda timing: timing.images_per_s)
    size = fastest.batch_size
    concurrency = 2 * size * engine.concurrency
    image = BatchInput(draw_test_image(manifest.input.height_px, manifest.input.width_px))
    print(f"{manifest.name}, {engine.description}, batch size {size}, concurrency {concurrency}")
    print("  engine img/s  batcher  of engine  p99 / full run  HTTP  of engine  p50 ms  p99 ms")
    batched, tails, served = [], [], []
    with run_service(package=args.package) as service:
        target = Target(service.port, "/detect", args.images)
        for _ in range(args.rounds):
            engine_rate = measure_engine(
                engine, manifest.input.height_px, manifest.input.width_px, size, args.seconds
            )
            rate, p99_s = asyncio.run(
                run_batcher(engine, fastest, image, concurrency, args.seconds)
            )
            over_http = closed_loop(target, args.seconds, concurrency, warmup_s=1)
            if over_http.ok is None or over_http.ok.count != over_http.completed:
                raise RuntimeError(f"some requests were rejected: {over_http.statuses}")
            batched.append(rate / engine_rate)
            tails.append(p99_s / (size * engine.concurrency / engine_rate))
            served.append(over_http.images_per_second / engine_rate)
            latency = over_http.ok.latency_ms
            print(
                f"  {engine_rate:12.2f}  {rate:7.2f}  {batched[-1]:9.3f}  {tails[-1]:14.2f}"
                f"  {over_http.images_per_second:4.1f}  {served[-1]:9.3f}"
                f"  {latency.p50:6.1f}  {latency.p99:6.1f}"
            )
    print(
        f"  medians: batcher {median(batched):.3f} of the engine, p99 {median(tails):.2f} runs of "
        f"a full batch; HTTP {median(served):.3f} of the engine"
    )


def measure_engine(
    engine: Engine, height_px: int, width_px: int, size: int, seconds: float
) -> float:
    """Return the images per second of ``engine.concurrency`` threads that run full batches."""
    images = np.stack([draw_test_image(height_px, width_px)] * size)
    started_at = time.perf_counter()
    end_at = started_at + seconds

    def loop() -> int:
        done = 0
        while time.perf_counter() < end_at:
            engine.run(images)
            done += size
        return done

    with ThreadPoolExecutor(engine.concurrency) as threads:
        workers = [threads.submit(loop) for _ in range(engine.concurrency)]
        total = sum(worker.result() for worker in workers)
    return total / (time.perf_counter() - started_at)


async def run_batcher(
    engine: Engine, timing: BatchTiming, image: BatchInput, concurrency: int, seconds: float
) -> tuple[float, float]:
    """Return the images per second and the p99 of the seconds from submission to outputs."""
    estimate = LatencyModel([(timing.batch_size, timing.run_s)])
    batcher = Batcher(
        BorrowedEngine(engine), BatchLimits(timing.batch_size), estimate, BatchSizes()
    )
    batcher.start()
    started_at = time.perf_counter()
    end_at = started_at + seconds
    latencies: list[float] = []

    async def client() -> None:
        while time.perf_counter() < end_at:
            submitted_at = time.perf_counter()
            await batcher.submit([image])
            latencies.append(time.perf_counter() - submitted_at)

    await asyncio.gather(*(client() for _ in range(concurrency)))
    elapsed_s = time.perf_counter() - started_at
    await batcher.stop()
    return len(latencies) / elapsed_s, float(np.percentile(latencies, 99))


if __name__ == "__main__":
    main()
