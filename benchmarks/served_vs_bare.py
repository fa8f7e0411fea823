"""What the batcher costs: images per second through it against the bare engine's, in one run.

    python benchmarks/served_vs_bare.py models/blood_cells

No HTTP and no decoding: inputs are ready. The engine alone and the batcher over it take turns;
the ratio is the median over the rounds. ``waiting`` inputs are kept in the batcher at all times.
"""

import argparse
import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np

from model_package import load_package
from service.batcher import Batcher, BatchInput, BatchLimits
from service.calibration import BatchTiming, calibrate, choose_batch_size
from service.canary import draw_canary
from service.engines import Engine
from service.estimates import LinearEstimate
from service.models import open_model_engine
from service.settings import Settings
from service.tuning import BatchSizes, BorrowedEngine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-batch-size", type=int)
    given = parser.parse_args()
    package = load_package(given.package)
    settings = Settings(models=given.package, max_batch_size=given.max_batch_size)
    engine = open_model_engine(package, settings)
    manifest = package.manifest
    timings = calibrate(engine, manifest, given.max_batch_size or 8, 1.0)
    size = given.max_batch_size or choose_batch_size(timings, None)
    chosen = next(timing for timing in timings if timing.batch_size == size)
    waiting = 2 * size * engine.concurrency
    image = BatchInput(draw_canary(manifest.input.height_px, manifest.input.width_px))
    print(f"{manifest.name}, {engine.description}, batches of {size}, {waiting} waiting")
    print("  bare images/s  served images/s  ratio  p99 / run of a full batch")
    ratios, tails = [], []
    for _ in range(given.rounds):
        bare = bare_rate(engine, manifest.input.height_px, manifest.input.width_px, size, given)
        served, p99_s = asyncio.run(serve(engine, chosen, image, waiting, given.seconds))
        ratios.append(served / bare)
        tails.append(p99_s / (size * engine.concurrency / bare))
        print(f"  {bare:13.2f}  {served:15.2f}  {ratios[-1]:5.3f}  {tails[-1]:6.2f}")
    print(f"  median ratio {median(ratios):.3f}, median p99 / full run {median(tails):.2f}")


def bare_rate(
    engine: Engine, height_px: int, width_px: int, size: int, given: argparse.Namespace
) -> float:
    """Images per second of as many threads as the engine takes, each in a loop of full batches."""
    images = np.stack([draw_canary(height_px, width_px)] * size)
    began_at = time.perf_counter()
    end_at = began_at + given.seconds

    def loop() -> int:
        done = 0
        while time.perf_counter() < end_at:
            engine.run(images)
            done += size
        return done

    with ThreadPoolExecutor(engine.concurrency) as threads:
        lanes = [threads.submit(loop) for _ in range(engine.concurrency)]
        total = sum(lane.result() for lane in lanes)
    return total / (time.perf_counter() - began_at)


async def serve(
    engine: Engine, timing: BatchTiming, image: BatchInput, waiting: int, seconds: float
) -> tuple[float, float]:
    """Images per second and the 99th percentile from arrival to outputs."""
    estimate = LinearEstimate([(timing.batch_size, timing.run_s)])
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
