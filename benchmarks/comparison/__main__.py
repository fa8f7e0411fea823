"""Compare the throughput and latency of this service with those of other model servers.

    python -m benchmarks.comparison --environments DIR --output DIR [--only NAME,NAME] [--rounds 5]

All servers use the same ONNX file, engine and JPEGs. First, each configuration of each server is
measured and the fastest is kept. Then all servers run at the same time and all but one are paused:
they are measured in short alternating turns, so that a drifting CPU speed affects all of them.
Throughput is also reported as a fraction of the throughput ceiling (``ceiling.py``). Writes
results.json after each server and each round, and results.md and results.svg after each case. A
run that finds the results of an earlier one in the output directory, complete or not, continues it.
"""

import argparse
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.comparison.ceiling import Ceiling, Pipeline, matched_fraction
from benchmarks.comparison.report import fraction_of, p99_ms, write_report
from benchmarks.comparison.servers import (
    MINIMAL,
    SERVERS,
    Configuration,
    RunningServer,
    Server,
    ServerError,
    prepare_environment,
    run_server,
    send_request,
    write_bodies,
)
from benchmarks.comparison.workload import CASES, Case, make_images, make_package
from benchmarks.cpu import CPU_ENGINES, describe_cpu
from benchmarks.load import Load, LoadError, Target, closed_loop, open_loop, read_records
from model_package import load_package

CONNECTIONS = 32
"""Connections of the closed loop: two batches of 8 in the engines and two being collected."""
LOAD = 0.8
"""Rate of the open loop as a fraction of the throughput of the third fastest server."""
CEILING_S = 2.0
"""Duration of each ceiling measurement; the throughput is divided by the mean of the one before
and the one after the turn."""
START_S = 3.0
WARMUP_S = 1.0
"""Excluded from each measurement: after a pause, caches are cold and estimates outdated."""


class Comparison:
    """The measurements of one case (network and image size)."""

    def __init__(self, case: Case, args: argparse.Namespace) -> None:
        self._args = args
        self.case = case
        self.package = make_package(case.side_px, args.work)
        self.images = make_images(case.width_px, case.height_px, args.work)
        self._pipeline = Pipeline(self.package, CPU_ENGINES[args.engine])
        bodies = [image.read_bytes() for image in self.images]
        self._bodies = bodies
        self._expected = [self._pipeline.detect(body) for body in bodies]
        self._batch_size = self._pipeline.best_batch_size(bodies, 4 * CEILING_S)
        self._threshold = load_package(self.package).manifest.decoder.score_threshold
        self.best: dict[str, Configuration] = {}
        self.throughputs: dict[str, dict[str, float]] = {}
        self.matched_fractions: dict[str, float] = {}
        self.rounds: list[dict[str, dict[str, Any]]] = []
        self.excluded: dict[str, str] = {}
        self.common_rate = 0.0

    @contextmanager
    def serve(self, server: Server, configuration: Configuration) -> Iterator[RunningServer]:
        """Run ``server``; verify its detections and warm it up before anything is measured."""
        folder = self._args.work / "forms" / server.name / self.images[0].parent.name
        bodies = write_bodies(server, self.images, folder)
        python = prepare_environment(server, self._args.environments)
        logs = self._args.work / "logs"
        with run_server(
            server, configuration, self._args.engine, python, self.package, bodies, logs
        ) as running:
            self._verify_detections(server, running.target)
            closed_loop(running.target, START_S, CONNECTIONS)
            yield running

    def _verify_detections(self, server: Server, target: Target) -> None:
        shares = [
            matched_fraction(
                expected,
                server.detections(send_request(target, body)),
                self._threshold,
                server.score_tolerances[CPU_ENGINES[self._args.engine].precision],
            )
            for expected, body in zip(self._expected, target.bodies, strict=True)
        ]
        self.matched_fractions[server.name] = min(shares)
        if min(shares) < server.min_matched_fraction:
            raise ServerError(
                f"{server.name} returns other detections than the pipeline without a server: only "
                f"{min(shares):.0%} of those of one image match."
            )

    def run(self, servers: Sequence[Server], rounds: int) -> Iterator[None]:
        """Choose configurations, unless an earlier run did, and measure further rounds.

        Yields after each server and each round.
        """
        for server in servers:
            if server.name not in {**self.best, **self.excluded}:
                self._tune(server)
                yield
        if not self.rounds:
            self.common_rate = LOAD * self._third_rate()
        if rounds:
            yield from self._compare(rounds)

    def _tune(self, server: Server) -> None:
        """Keep the configuration with the highest throughput; exclude the server if none works."""
        rates = {}
        problems = []
        for configuration in server.configurations:
            try:
                with self.serve(server, configuration) as running:
                    loop = closed_loop(running.target, self._args.tune_seconds, CONNECTIONS)
                    rates[configuration] = _require_success(server, loop).images_per_second
            except (ServerError, LoadError) as error:  # another configuration may work
                problems.append(str(error))
            outcome = f"{rates[configuration]:.1f}/s" if configuration in rates else problems[-1]
            _log(f"{self.case.name} {server.name} [{configuration}]: {outcome}")
        if rates:
            self.best[server.name] = max(rates, key=rates.__getitem__)
            self.throughputs[server.name] = {str(key): rate for key, rate in rates.items()}
        else:
            self._exclude(server, "; ".join(problems))

    def _compare(self, rounds: int) -> Iterator[None]:
        """Start all servers, pause them, and measure them in alternating turns."""
        with ExitStack() as stack:
            running = {}
            for name, configuration in list(self.best.items()):
                try:
                    running[name] = stack.enter_context(self.serve(SERVERS[name], configuration))
                except (ServerError, LoadError) as error:
                    self._exclude(SERVERS[name], str(error))
                else:
                    running[name].pause()
            first = len(self.rounds)
            for number in range(first, first + rounds):
                self._measure_round(number, running)
                yield

    def _third_rate(self) -> float:
        """Return the throughput of the third fastest server, so that three can sustain the rate."""
        rates = sorted(
            (max(rates.values()) for name, rates in self.throughputs.items() if name != MINIMAL),
            reverse=True,
        )
        return rates[min(2, len(rates) - 1)] if rates else 0.0

    def _measure_round(self, number: int, running: dict[str, RunningServer]) -> None:
        _log(f"{self.case.name} round {number + 1}")
        results = {}
        # A different server starts each round.
        names = list(self.best)
        first = number % max(1, len(names))
        ceiling = self._ceiling()
        for name in names[first:] + names[:first]:
            try:
                loads = self._measure(SERVERS[name], running[name], number)
            except (ServerError, LoadError) as error:  # continue without this server
                self._exclude(SERVERS[name], str(error))
                continue
            before, ceiling = ceiling, self._ceiling()
            results[name] = turn = {**loads, "ceilings": [before.as_json(), ceiling.as_json()]}
            _log(
                f"  {name}: {turn['images_per_second']:.1f}/s, "
                f"{fraction_of(turn, 'images_per_second'):.3f} of the ceiling; p99 "
                f"{p99_ms([turn])} ms at {self.common_rate:.1f}/s"
            )
        self.rounds.append(results)

    def _exclude(self, server: Server, reason: str) -> None:
        _log(f"excluded: {reason}")
        self.excluded[server.name] = reason
        self.best.pop(server.name, None)
        self.throughputs.pop(server.name, None)

    def _measure(self, server: Server, running: RunningServer, seed: int) -> dict[str, Any]:
        seconds = self._args.seconds
        with running.resumed() as target:
            loop = closed_loop(target, seconds, CONNECTIONS, warmup_s=WARMUP_S)
            _require_success(server, loop)
            return {
                "images_per_second": loop.images_per_second,
                "generator_cpu_share": loop.cpu_share,
                **self._open_loop(target, seed),
            }

    def _open_loop(self, target: Target, seed: int) -> dict[str, Any]:
        seconds, rate = self._args.seconds, self.common_rate
        with TemporaryDirectory() as folder:
            records = Path(folder) / "records"
            load = open_loop(target, seconds, rate, seed=seed, warmup_s=WARMUP_S, records=records)
            latencies_ms = [
                round(record.latency_ms, 1)
                for record in read_records(records)
                if record.status == 200
            ]
        return {"all_ok": load.all_ok, "latencies_ms": latencies_ms}

    def _ceiling(self) -> Ceiling:
        return self._pipeline.ceiling(self._bodies, self._batch_size, CEILING_S)

    def as_json(self) -> dict[str, Any]:
        """Return the kept configurations and all measurements."""
        return {
            "common_rate": self.common_rate,
            "configurations": {name: str(best) for name, best in self.best.items()},
            "throughputs": self.throughputs,
            "min_matched_fraction": self.matched_fractions,
            "excluded": self.excluded,
            "rounds": self.rounds,
        }

    def restore(self, results: dict[str, Any]) -> None:
        """Continue from what :meth:`as_json` returned in an earlier run."""
        self.best = {
            name: next(one for one in SERVERS[name].configurations if str(one) == kept)
            for name, kept in results["configurations"].items()
        }
        self.common_rate = results["common_rate"]
        self.throughputs = results["throughputs"]
        self.matched_fractions = results["min_matched_fraction"]
        self.excluded = results["excluded"]
        self.rounds = results["rounds"]


def _require_success(server: Server, load: Load) -> Load:
    if not load.all_ok:
        raise ServerError(
            f"{server.name} did not respond with 200 to all requests of the closed loop: {load}."
        )
    return load


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    args = _parse()
    # Exit normally on SIGTERM, so that the servers are stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    servers = [SERVERS[name] for name in args.only]
    for server in servers:
        prepare_environment(server, args.environments)
    args.output.mkdir(parents=True, exist_ok=True)
    results = _earlier_results(args)
    cases = results["cases"]
    for case in args.cases:
        comparison = Comparison(CASES[case], args)
        if case in cases:
            comparison.restore(cases[case])
        for _ in comparison.run(servers, args.rounds):
            cases[case] = comparison.as_json()
            (args.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        report = write_report(results, args.output)
    print(report)


def _earlier_results(args: argparse.Namespace) -> dict[str, Any]:
    """Return the results in the output directory, or empty ones."""
    settings = {
        "cpu": describe_cpu(),
        "engine": args.engine,
        "servers": args.only,
        "seconds": args.seconds,
        "connections": CONNECTIONS,
        "load": LOAD,
    }
    file = args.output / "results.json"
    if not file.exists():
        return {**settings, "cases": {}}
    results: dict[str, Any] = json.loads(file.read_text())
    if different := [name for name, value in settings.items() if results.get(name) != value]:
        raise SystemExit(
            f"{file} was measured with another {', '.join(different)}: name another --output."
        )
    return results


def _parse() -> argparse.Namespace:
    def names(known: Sequence[str]) -> Any:
        def read(text: str) -> list[str]:
            chosen = text.split(",")
            if unknown := [name for name in chosen if name not in known]:
                raise argparse.ArgumentTypeError(
                    f"unknown: {', '.join(unknown)}; choose from: {', '.join(known)}"
                )
            return chosen

        return read

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.comparison", description=__doc__.partition("\n")[0]
    )
    servers, cases = list(SERVERS), list(CASES)
    parser.add_argument(
        "--environments",
        type=Path,
        required=True,
        help="directory of the servers' virtual environments",
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--work", type=Path, help="networks, images and logs (default: OUTPUT/work)"
    )
    parser.add_argument(
        "--engine", choices=CPU_ENGINES, default="openvino-bf16", help="engine of all servers"
    )
    parser.add_argument("--only", type=names(servers), default=servers)
    parser.add_argument("--cases", type=names(cases), default=cases)
    parser.add_argument("--rounds", type=int, default=9, help="0: only choose configurations")
    parser.add_argument("--seconds", type=float, default=4.0, help="per turn")
    parser.add_argument("--tune-seconds", type=float, default=4.0, help="per configuration")
    args = parser.parse_args()
    args.work = (args.work or args.output / "work").absolute()
    args.environments = args.environments.absolute()
    args.work.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
