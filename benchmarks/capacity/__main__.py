"""Predict the latency of replicas, compare it with running ones, and extrapolate it.

    python -m benchmarks.capacity measure DIR/sleeping.json
    python -m benchmarks.capacity measure DIR/blood_cells.json --package models/blood_cells
    python -m benchmarks.capacity extrapolate DIR/blood_cells.json

``measure`` first measures the durations of the stages of one replica (``ServiceTimes``), then the
p99 of 1, 2 and 3 replicas behind nginx (``least_conn``) at 50, 70 and 85 % of their throughput,
and compares it with the simulation, of other random arrivals and of the same; the exit status is 1
if the former differs by more than 25 %. The
replicas have an engine that sleeps, because they share the cores; with ``--package`` one replica
runs a package. ``extrapolate`` simulates up to hundreds of replicas with the durations in the file.
The machine must be idle.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.capacity import sleeping_engine
from benchmarks.capacity.drawing import draw_extrapolation
from benchmarks.capacity.service_times import ServiceTimes, measure_service_times
from benchmarks.capacity.simulation import BALANCERS, simulate, simulate_arrivals
from benchmarks.cpu import describe_cpu
from benchmarks.endurance.service import BUNDLED, IMAGES, SERVICE, run_service
from benchmarks.http_clients import run_nginx
from benchmarks.load import Record, Target, open_loop, read_records
from evaluation.report import markdown_table
from service.cpu_cores import available_cores

REPLICAS = (1, 2, 3)
LOADS = (0.5, 0.7, 0.85)
TOLERANCE = 0.25
"""Largest accepted difference of the predicted p99, relative to the measured one."""
PREDICTED_REQUESTS = 40_000
EXTRAPOLATED_REPLICAS = (1, 2, 4, 10, 30, 300)
EXTRAPOLATED_LOADS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
EXTRAPOLATED_REQUESTS = 20_000
_PER_REPLICA = 200
"""Requests per replica that an extrapolated point has at least."""
_WARMUP_S = 2.0
_IMAGE = IMAGES[0]


@dataclass
class Comparison:
    """Latencies of one number of replicas and one load, as measured and as predicted.

    ``rounds`` has the requests of each round; ``predicted_ms`` is the predicted p99.
    """

    replicas: int
    load: float
    predicted_ms: float
    rounds: list[list[Record]] = field(default_factory=list)

    @property
    def measured_ms(self) -> float:
        """The measured p99 of all rounds."""
        return _p99([record.latency_ms for records in self.rounds for record in records])

    @property
    def error(self) -> float:
        """Difference of the prediction, relative to the measured p99."""
        return self.predicted_ms / self.measured_ms - 1

    def same_arrivals_ms(self, times: ServiceTimes) -> float:
        """Return the p99 of a simulation with the measured arrivals, without their randomness."""
        latencies_s = [
            simulate_arrivals(
                times, [record.scheduled_s for record in records], replicas=self.replicas
            )
            for records in self.rounds
        ]
        return 1000 * _p99(np.concatenate(latencies_s))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.capacity", description=__doc__.partition("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("measure", help="compare the simulation with running replicas")
    command.add_argument("file", type=Path, help="JSON file to write")
    command.add_argument("--package", type=Path, help="run this package, with one replica")
    command.add_argument("--seconds", type=float, default=30.0, help="per run")
    command.add_argument("--rounds", type=int, default=3)
    command = commands.add_parser("extrapolate", help="simulate hundreds of replicas")
    command.add_argument("file", type=Path, help="JSON file with measured durations")
    args = parser.parse_args()
    if args.command == "extrapolate":
        _extrapolate(args.file)
        return 0
    return _measure(args.file, args.package, args.rounds, args.seconds)


def _measure(file: Path, package: Path | None, rounds: int, seconds: float) -> int:
    counts = (1,) if package else REPLICAS
    with ExitStack() as stack:
        ports = stack.enter_context(_run_replicas(package, counts))
        concurrency, max_batch_size = (
            (available_cores(), sleeping_engine.MAX_BATCH_SIZE)
            if package
            else (sleeping_engine.CONCURRENCY, sleeping_engine.MAX_BATCH_SIZE)
        )
        times = measure_service_times(
            ports[1],
            _IMAGE,
            concurrency=concurrency,
            max_batch_size=max_batch_size,
            image_threads=available_cores(),
            seconds=seconds / 6,
        )
        comparisons = [
            Comparison(count, load, _predict_ms(times, count, load))
            for count in counts
            for load in LOADS
        ]
        for number in range(rounds):
            for index, one in enumerate(comparisons):
                seed = number * len(comparisons) + index
                _compare(one, times, ports[one.replicas], seconds, seed)
    rows = [
        {
            "replicas": one.replicas,
            "load": one.load,
            "requests": sum(map(len, one.rounds)),
            "measured_ms": one.measured_ms,
            "rounds_ms": [
                _p99([record.latency_ms for record in records]) for records in one.rounds
            ],
            "predicted_ms": one.predicted_ms,
            "error": one.error,
            "same_arrivals_ms": one.same_arrivals_ms(times),
        }
        for one in comparisons
    ]
    values = {
        "cpu": describe_cpu(),
        "command": f"python -m benchmarks.capacity {' '.join(sys.argv[1:])}",
        "service_times": times.to_json(),
        "comparisons": rows,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(_rounded(values)) + "\n")
    print(f"{times.images_per_s:.1f} images/s per replica\n")
    print(_comparison_table(rows))
    return int(any(abs(one.error) > TOLERANCE for one in comparisons))


@contextmanager
def _run_replicas(package: Path | None, counts: Sequence[int]) -> Iterator[dict[int, int]]:
    """Run replicas, and nginx in front of the first of them; yield its port by their number."""
    options = ("--self-test-interval-s", "0", "--image-threads", str(available_cores()))
    with ExitStack() as stack:
        if package is None:
            program, options = sleeping_engine.PROGRAM, (*options, *sleeping_engine.OPTIONS)
            package = stack.enter_context(sleeping_engine.sleeping_package(BUNDLED))
        else:
            size = str(sleeping_engine.MAX_BATCH_SIZE)
            program, options = SERVICE, (*options, "--max-batch-size", size)
        replicas = [
            stack.enter_context(run_service(*options, package=package, program=program))
            for _ in range(max(counts))
        ]
        ports = {}
        for count in counts:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            servers = [replica.port for replica in replicas[:count]]
            ports[count], _ = stack.enter_context(run_nginx(servers, folder))
        yield ports


def _predict_ms(times: ServiceTimes, replicas: int, load: float) -> float:
    latencies_s = simulate(times, replicas=replicas, load=load, requests=PREDICTED_REQUESTS)
    return 1000 * _p99(latencies_s)


def _p99(latencies: Sequence[float] | np.ndarray) -> float:
    return float(np.percentile(latencies, 99, method="inverted_cdf"))


def _compare(one: Comparison, times: ServiceTimes, port: int, seconds: float, seed: int) -> None:
    """Add a round."""
    rate = one.load * one.replicas * times.images_per_s
    with TemporaryDirectory() as folder:
        file = Path(folder, "records")
        target = Target(port, "/detect", [_IMAGE])
        load = open_loop(target, seconds, rate, seed=seed, warmup_s=_WARMUP_S, records=file)
        if not load.all_ok:
            raise RuntimeError(f"some requests did not succeed: {load}")
        one.rounds.append(sorted(read_records(file)))
    print(
        f"{one.replicas} replicas, {one.load:.0%}: "
        f"{_p99([record.latency_ms for record in one.rounds[-1]]):.0f} ms, predicted "
        f"{one.predicted_ms:.0f} ms; the load generator was late by up to "
        f"{load.max_dispatch_delay_ms:.1f} ms",
        file=sys.stderr,
        flush=True,
    )


def _comparison_table(rows: Sequence[Mapping[str, Any]]) -> str:
    return markdown_table(
        (
            *("replicas", "load", "requests", "p99 measured, ms", "rounds"),
            *("predicted", "difference", "predicted, same arrivals"),
        ),
        [
            (
                row["replicas"],
                f"{row['load']:.0%}",
                row["requests"],
                f"{row['measured_ms']:.0f}",
                f"{min(row['rounds_ms']):.0f} to {max(row['rounds_ms']):.0f}",
                f"{row['predicted_ms']:.0f}",
                f"{row['error']:+.0%}",
                f"{row['same_arrivals_ms']:.0f}",
            )
            for row in rows
        ],
    )


def _extrapolate(file: Path) -> None:
    """Write ``extrapolated.json`` and ``extrapolated.svg`` beside ``file``, and print a table."""
    times = ServiceTimes.from_json(json.loads(file.read_text())["service_times"])
    points: dict[str, dict[int, list[float]]] = {}
    for balancer in BALANCERS:
        for replicas in EXTRAPOLATED_REPLICAS:
            began_at = time.monotonic()
            requests = max(EXTRAPOLATED_REQUESTS, _PER_REPLICA * replicas)
            points.setdefault(balancer, {})[replicas] = [
                1000
                * _p99(
                    simulate(
                        times, replicas=replicas, load=load, requests=requests, balancer=balancer
                    )
                )
                for load in EXTRAPOLATED_LOADS
            ]
            seconds = time.monotonic() - began_at
            print(f"{balancer}, {replicas} replicas: {seconds:.0f} s", file=sys.stderr, flush=True)
    values = {"images_per_s": times.images_per_s, "loads": EXTRAPOLATED_LOADS, "p99_ms": points}
    file.with_name("extrapolated.json").write_text(json.dumps(_rounded(values)) + "\n")
    draw_extrapolation(EXTRAPOLATED_LOADS, points, file.with_name("extrapolated.svg"))
    for balancer, lines in points.items():
        print(f"\np99 in ms, {balancer}\n")
        rows = [
            (str(replicas), *(f"{p99_ms:.0f}" for p99_ms in line))
            for replicas, line in lines.items()
        ]
        print(markdown_table(("replicas", *(f"{load:.0%}" for load in EXTRAPOLATED_LOADS)), rows))


def _rounded(value: Any) -> Any:
    """Return the values with numbers of six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    sys.exit(main())
