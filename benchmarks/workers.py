"""Compare one process with several worker processes on the same cores.

    python -m benchmarks.workers models/blood_cells docs/samples/*.jpg
    python -m benchmarks.workers models/blood_cells docs/samples/*.jpg --constant
    python -m benchmarks.workers models/blood_cells docs/samples/*.jpg --constant --layers 8

``--constant``: the engine returns constant outputs, and takes the time of ``--layers`` matrix
products per image. The variants take alternating turns with the throughput ceiling (cores / CPU
seconds of decoding, warp and engine per image); the ratios are medians over the rounds. The load
generator shares the cores with the service, so the CPU time per image is more reliable than the
throughput when other programs run.
"""

import argparse
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.comparison.ceiling import Pipeline
from benchmarks.constant_package import constant_package
from benchmarks.endurance.service import Service, run_service
from benchmarks.load import Target, closed_loop

_BATCH_SIZE = 8
"""Maximum batch size; that of the warm-up differs from start to start."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--constant", action="store_true")
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--backend", default="onnxruntime-cpu")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each turn")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    if args.layers and not args.constant:
        parser.error("--layers needs --constant")
    variants = (1, args.workers)
    with ExitStack() as stack:
        package = args.package
        if args.constant:
            package = stack.enter_context(
                constant_package(args.package, args.images[0], args.layers)
            )
        services = []
        for workers in variants:
            options = ("--workers", str(workers), "--backend", args.backend)
            options += ("--max-batch-size", str(_BATCH_SIZE))
            services.append(stack.enter_context(run_service(*options, package=package)))
            _wait_for_workers(services[-1], workers)
        pipeline, bodies = Pipeline(package), [image.read_bytes() for image in args.images]
        ceilings, rounds = [], []
        for _ in range(args.rounds):
            ceilings.append(pipeline.ceiling(bodies, _BATCH_SIZE, args.seconds))
            rounds.append([_measure(service, args) for service in services])
    ideal_ms = median(ceiling.prepare_ms + ceiling.engine_ms for ceiling in ceilings)
    engine_ms = median(ceiling.engine_ms for ceiling in ceilings)
    print(f"CPU ms per image: decoding, warp and engine {ideal_ms:.2f}, engine {engine_ms:.2f}")
    print("| workers | images/s | of the ceiling | p50 ms | p99 ms | CPU ms per image |")
    print("|---:|---:|---|---:|---:|---:|")
    for index, workers in enumerate(variants):
        turns = [row[index] for row in rounds]
        fractions = [
            turn.images_per_second / ceiling.images_per_second
            for turn, ceiling in zip(turns, ceilings, strict=True)
        ]
        print(
            f"| {workers} | {median(turn.images_per_second for turn in turns):.0f} "
            f"| {_spread(fractions)} | {median(turn.p50_ms for turn in turns):.1f} "
            f"| {median(turn.p99_ms for turn in turns):.1f} "
            f"| {median(turn.cpu_ms for turn in turns):.2f} |"
        )
    ratios = [many.images_per_second / one.images_per_second for one, many in rounds]
    print(f"images/s, ratio: {_spread(ratios)}")
    ratios = [many.cpu_ms / one.cpu_ms for one, many in rounds]
    print(f"CPU time per image, ratio: {_spread(ratios)}")


@dataclass(frozen=True)
class _Turn:
    images_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    """CPU time of all processes of the service per image."""


def _measure(service: Service, args: argparse.Namespace) -> _Turn:
    target = Target(service.port, "/detect", args.images, ())
    closed_loop(target, 1, args.connections)
    before_s = _cpu_seconds(service.process.pid)
    load = closed_loop(target, args.seconds, args.connections)
    used_s = _cpu_seconds(service.process.pid) - before_s
    if load.ok is None or not load.all_ok:
        raise RuntimeError(f"some requests failed: {load.statuses}")
    latency = load.ok.latency_ms
    return _Turn(load.images_per_second, latency.p50, latency.p99, 1000 * used_s / load.completed)


def _cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of the threads of a process and of its child processes."""
    total_s = 0.0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        total_s += int((thread / "schedstat").read_text().split()[0]) / 1e9
        total_s += sum(map(_cpu_seconds, map(int, (thread / "children").read_text().split())))
    return total_s


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _wait_for_workers(service: Service, workers: int) -> None:
    while service.metrics().total("centernet_model_ready") < workers:
        time.sleep(0.1)


if __name__ == "__main__":
    main()
