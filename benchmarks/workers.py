"""Compare one process with several worker processes on the same cores.

    python -m benchmarks.workers models/blood_cells docs/samples/*.jpg
    python -m benchmarks.workers models/blood_cells docs/samples/*.jpg --constant

``--constant``: the engine returns constant outputs and costs nothing. The variants take alternating
turns; the ratios are medians over the rounds. The load generator shares the cores with the service.
"""

import argparse
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks.constant_package import constant_package
from benchmarks.endurance.service import Service, run_service
from benchmarks.load import Load, Target, closed_loop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--constant", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--backend", default="onnxruntime-cpu")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each turn")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    variants = (1, args.workers)
    with ExitStack() as stack:
        package = args.package
        if args.constant:
            package = stack.enter_context(constant_package(args.package, args.images[0]))
        services = []
        for workers in variants:
            options = ("--workers", str(workers), "--backend", args.backend)
            options += ("--max-batch-size", "8")  # that of the warm-up differs from start to start
            services.append(stack.enter_context(run_service(*options, package=package)))
            _wait_for_workers(services[-1], workers)
        rounds = [[_measure(service, args) for service in services] for _ in range(args.rounds)]
    print("| workers | images/s | p50 ms | p99 ms |\n|---:|---:|---:|---:|")
    for index, workers in enumerate(variants):
        loads = [row[index] for row in rounds]
        latencies = [load.ok.latency_ms for load in loads if load.ok is not None]
        print(
            f"| {workers} | {median(load.images_per_second for load in loads):.0f} "
            f"| {median(latency.p50 for latency in latencies):.1f} "
            f"| {median(latency.p99 for latency in latencies):.1f} |"
        )
    ratios = sorted(many.images_per_second / one.images_per_second for one, many in rounds)
    print(f"images/s, ratio: {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


def _measure(service: Service, args: argparse.Namespace) -> Load:
    target = Target(service.port, "/detect", args.images, ())
    load = closed_loop(target, args.seconds, args.connections, warmup_s=1)
    if not load.all_ok:
        raise RuntimeError(f"some requests failed: {load.statuses}")
    return load


def _wait_for_workers(service: Service, workers: int) -> None:
    while service.metrics().total("centernet_model_ready") < workers:
        time.sleep(0.1)


if __name__ == "__main__":
    main()
