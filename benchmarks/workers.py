"""Compare one process with several worker processes on the same cores.

    python -m benchmarks.workers models/blood_cells docs/samples/*.jpg
    python -m benchmarks.workers models/blood_cells docs/samples/*.jpg --constant
    python -m benchmarks.workers models/blood_cells docs/samples/*.jpg --constant --layers 8

``--constant``: the engine returns constant outputs, and takes the time of ``--layers`` matrix
products per image. ``--fronts``: also measure processes that share the engine of another process
(``benchmarks.shared_engine``).

The variants take alternating turns with the throughput ceiling (cores / CPU seconds of decoding,
warp and engine per image); ratios to the first variant and to the ceiling are medians over the
rounds. The load generator shares the cores with the service, so the CPU time per image is more
reliable than the throughput when other programs run.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.comparison.ceiling import Pipeline
from benchmarks.constant_package import constant_package
from benchmarks.cpu import CPU_ENGINES, CpuEngine
from benchmarks.endurance.service import SERVICE, Service, run_service
from benchmarks.load import Target, closed_loop
from benchmarks.shared_engine import FRONT_ENGINE, MAX_BATCH_SIZE, engine_process, front_program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--constant", action="store_true")
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--fronts", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--engine", choices=CPU_ENGINES, default="onnxruntime-fp32")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each turn")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    if args.layers and not args.constant:
        parser.error("--layers needs --constant")
    variants = [_Variant("1 process", 1), _Variant(f"{args.workers} workers", args.workers)]
    if args.fronts:
        variants += [
            _Variant(f"engine process, {count} front{'s' * (count > 1)}", count, has_fronts=True)
            for count in (1, args.workers)
        ]
    engine = CPU_ENGINES[args.engine]
    with ExitStack() as stack:
        package = args.package
        if args.constant:
            package = stack.enter_context(
                constant_package(args.package, args.images[0], args.layers)
            )
        services = [stack.enter_context(_start(variant, package, engine)) for variant in variants]
        pipeline = Pipeline(package, engine)
        bodies = [image.read_bytes() for image in args.images]
        ceilings, rounds = [], []
        for _ in range(args.rounds):
            ceilings.append(pipeline.ceiling(bodies, MAX_BATCH_SIZE, args.seconds))
            rounds.append([_measure(*service, args) for service in services])
    for title, values in (
        ("decoding, warp and engine, alone", [one.prepare_ms + one.engine_ms for one in ceilings]),
        ("engine, alone", [one.engine_ms for one in ceilings]),
        ("without a server, one thread per core", [one.no_server_cpu_ms for one in ceilings]),
    ):
        print(f"CPU ms per image, {title}: {median(values):.2f}")
    print(
        "| | images/s | ratio | of the ceiling | p50 ms | p99 ms "
        "| CPU ms per image | ratio | without a server |"
    )
    print("|---|---:|---|---|---:|---:|---:|---|---|")
    for index, variant in enumerate(variants):
        turns = [row[index] for row in rounds]
        fractions = [
            turn.images_per_second / ceiling.images_per_second
            for turn, ceiling in zip(turns, ceilings, strict=True)
        ]
        efficiency = [
            ceiling.no_server_cpu_ms / turn.cpu_ms
            for turn, ceiling in zip(turns, ceilings, strict=True)
        ]
        rates = [row[index].images_per_second / row[0].images_per_second for row in rounds]
        costs = [row[index].cpu_ms / row[0].cpu_ms for row in rounds]
        print(
            f"| {variant.name} | {median(turn.images_per_second for turn in turns):.0f} "
            f"| {_spread(rates)} | {_spread(fractions)} "
            f"| {median(turn.p50_ms for turn in turns):.1f} "
            f"| {median(turn.p99_ms for turn in turns):.1f} "
            f"| {median(turn.cpu_ms for turn in turns):.2f} | {_spread(costs)} "
            f"| {_spread(efficiency)} |"
        )


@dataclass(frozen=True)
class _Variant:
    name: str
    workers: int
    has_fronts: bool = False
    """Whether the workers share the engine of another process."""


@contextmanager
def _start(
    variant: _Variant, package: Path, engine: CpuEngine
) -> Iterator[tuple[Service, Sequence[int]]]:
    """Run the service of a variant; yields it and its processes apart from child processes."""
    options = ("--workers", str(variant.workers), "--max-batch-size", str(MAX_BATCH_SIZE))
    with ExitStack() as stack:
        owners, program = [], SERVICE
        if variant.has_fronts:
            pid, address = stack.enter_context(engine_process(package, engine))
            owners.append(pid)
            program, engine = front_program(address), FRONT_ENGINE
        options += ("--backend", engine.backend, "--precision", engine.precision)
        service = stack.enter_context(run_service(*options, package=package, program=program))
        # All workers must have loaded their models.
        while service.metrics().total("centernet_model_ready") < variant.workers:
            time.sleep(0.1)
        yield service, [service.process.pid, *owners]


@dataclass(frozen=True)
class _Turn:
    images_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    """CPU time of all processes of the service per image."""


def _measure(service: Service, pids: Sequence[int], args: argparse.Namespace) -> _Turn:
    target = Target(service.port, "/detect", args.images, ())
    closed_loop(target, 1, args.connections)
    before_s = sum(map(_cpu_seconds, pids))
    load = closed_loop(target, args.seconds, args.connections)
    used_s = sum(map(_cpu_seconds, pids)) - before_s
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


if __name__ == "__main__":
    main()
