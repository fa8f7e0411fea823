"""This service and others: images per second and latency, as fractions of what the CPU allows.

    python -m benchmarks.peers --environments DIR --output DIR [--only ours,mosec] [--rounds 5]

Every server serves the same ONNX file and the same JPEGs. First each server's tunings are tried and
the fastest is kept. Then all run at once and all but one are paused: they take short turns, so that
a machine whose speed moves within seconds moves all of them. Writes results.json, results.md and
results.svg after each case.
"""

import argparse
import json
import math
import signal
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.load import Load, LoadError, Target, closed_loop, open_loop
from benchmarks.peers.ceiling import Ceiling, Pipeline, matched_fraction
from benchmarks.peers.report import write_report
from benchmarks.peers.servers import (
    LEAST,
    SERVERS,
    Running,
    Server,
    ServerError,
    Tuning,
    ask,
    bodies_for,
    prepare_environment,
    running,
)
from benchmarks.peers.workload import CASES, Case, make_images, make_package
from model_package import load_package

CONNECTIONS = 32
"""Of the closed loop: two batches of 8 in the engines and as many in the making."""
LOAD = 0.8
CEILING_S = 2.0
"""Before and after each closed loop: the mean of both is what it is compared with."""
START_S = 3.0
WARMUP_S = 1.0
"""After a pause, caches are cold and a server's estimates old."""


class Comparison:
    """One case: its network, images and what was measured."""

    def __init__(self, case: Case, given: argparse.Namespace) -> None:
        self._given = given
        self.case = case
        self.package = make_package(case.side_px, given.work)
        self.images = make_images(case, given.work)
        self._pipeline = Pipeline(self.package)
        bodies = [image.read_bytes() for image in self.images]
        self._bodies = bodies
        self._expected = [self._pipeline.detect(body) for body in bodies]
        self._batch_size = self._pipeline.best_batch_size(bodies, 4 * CEILING_S)
        self._threshold = load_package(self.package).manifest.decoder.score_threshold
        self.best: dict[str, Tuning] = {}
        self.tried: dict[str, dict[str, float]] = {}
        self.matched: dict[str, float] = {}
        self.rounds: list[dict[str, dict[str, Any]]] = []
        self.left_out: dict[str, str] = {}
        self.common_rate = 0.0

    @contextmanager
    def serve(self, server: Server, tuning: Tuning) -> Iterator[Running]:
        """Run ``server``, and see to it that it finds what it should before anything is timed."""
        folder = self._given.work / "forms" / server.name / self.images[0].parent.name
        bodies = bodies_for(server, self.images, folder)
        python = prepare_environment(server, self._given.environments)
        logs = self._given.work / "logs"
        with running(server, tuning, python, self.package, bodies, logs) as started:
            self._check(server, started.target)
            closed_loop(started.target, START_S, CONNECTIONS)
            yield started

    def _check(self, server: Server, target: Target) -> None:
        shares = [
            matched_fraction(
                expected,
                server.detections(ask(target, body)),
                self._threshold,
                server.score_tolerance,
            )
            for expected, body in zip(self._expected, target.bodies, strict=True)
        ]
        self.matched[server.name] = min(shares)
        if min(shares) < server.least_match:
            raise ServerError(
                f"{server.name} finds other things than the pipeline without a server: "
                f"{min(shares):.0%} of the detections of one image match."
            )

    def tune(self, server: Server) -> None:
        """Keep the tuning of ``server`` with the most images per second, or leave it out."""
        rates = {}
        problems = []
        for tuning in server.tunings:
            try:
                with self.serve(server, tuning) as started:
                    loop = closed_loop(started.target, self._given.tune_seconds, CONNECTIONS)
                    rates[tuning] = _clean(server, loop).images_per_second
            except (ServerError, LoadError) as error:  # another tuning may work
                problems.append(str(error))
            outcome = f"{rates[tuning]:.1f}/s" if tuning in rates else problems[-1]
            _say(f"{self.case.name} {server.name} [{tuning}]: {outcome}")
        if rates:
            self.best[server.name] = max(rates, key=rates.__getitem__)
            self.tried[server.name] = {str(tuning): rate for tuning, rate in rates.items()}
        else:
            self._leave_out(server, "; ".join(problems))

    def compare(self) -> None:
        """Start every server, pause them, and measure them by turns."""
        self.common_rate = LOAD * self._third_rate()
        with ExitStack() as stack:
            started = {}
            for name, tuning in list(self.best.items()):
                try:
                    started[name] = stack.enter_context(self.serve(SERVERS[name], tuning))
                except (ServerError, LoadError) as error:
                    self._leave_out(SERVERS[name], str(error))
                else:
                    started[name].pause()
            for number in range(self._given.rounds):
                self._round(number, started)

    def _third_rate(self) -> float:
        """Of the third fastest service, so that three are asked what they can answer."""
        rates = sorted(
            (max(tried.values()) for name, tried in self.tried.items() if name != LEAST),
            reverse=True,
        )
        return rates[min(2, len(rates) - 1)] if rates else 0.0

    def _round(self, number: int, started: dict[str, Running]) -> None:
        _say(f"{self.case.name} round {number + 1}")
        found = {}
        # Another one begins each time.
        names = list(self.best)
        first = number % max(1, len(names))
        for name in names[first:] + names[:first]:
            try:
                found[name] = self._measure(SERVERS[name], started[name], number)
            except (ServerError, LoadError) as error:  # the others are compared without it
                self._leave_out(SERVERS[name], str(error))
        self.rounds.append(found)

    def _leave_out(self, server: Server, why: str) -> None:
        _say(f"left out: {why}")
        self.left_out[server.name] = why
        self.best.pop(server.name, None)
        self.tried.pop(server.name, None)

    def _measure(self, server: Server, started: Running, seed: int) -> dict[str, Any]:
        seconds = self._given.seconds
        ceilings = [self._ceiling()]
        with started.awake() as target:
            loop = closed_loop(target, seconds, CONNECTIONS, warmup_s=WARMUP_S)
        ceilings.append(self._ceiling())
        rate = _clean(server, loop).images_per_second
        own_rate = LOAD * rate
        with started.awake() as target:
            own = self._open_loop(target, own_rate, seed)
            common = self._open_loop(target, self.common_rate, seed)
        fraction = rate / statistics.mean(one.images_per_second for one in ceilings)
        of_peers = rate / statistics.mean(one.peers_images_per_second for one in ceilings)
        of_unserved = rate / statistics.mean(one.unserved_per_second for one in ceilings)
        _say(
            f"  {server.name}: {rate:.1f}/s, {fraction:.3f} of the ceiling, {of_peers:.3f} with "
            f"Pillow, {of_unserved:.3f} of no server; p99 {_p99([own])} ms at {own_rate:.1f}/s, "
            f"{_p99([common])} ms at {self.common_rate:.1f}/s"
        )
        return {
            "fraction_of_ceiling": fraction,
            "fraction_of_peers_ceiling": of_peers,
            "fraction_of_unserved": of_unserved,
            "images_per_second": rate,
            "ceilings": [one.as_json() for one in ceilings],
            "closed": asdict(loop),
            "own_load": own,
            "common_load": common,
        }

    def _open_loop(self, target: Target, rate: float, seed: int) -> dict[str, Any]:
        seconds = self._given.seconds
        with TemporaryDirectory() as folder:
            records = Path(folder) / "records"
            load = open_loop(target, seconds, rate, seed=seed, warmup_s=WARMUP_S, records=records)
            lines = [line.split(",") for line in records.read_text().splitlines()]
        latencies_ms = [round(float(ms), 1) for _, ms, status in lines if status == "200"]
        return {"rate": rate, **asdict(load), "latencies_ms": latencies_ms}

    def _ceiling(self) -> Ceiling:
        return self._pipeline.ceiling(self._bodies, self._batch_size, CEILING_S)

    def as_json(self) -> dict[str, Any]:
        """All that was measured, and the medians."""
        names = list(self.best)
        return {
            "common_rate": self.common_rate,
            "tunings": {name: str(tuning) for name, tuning in self.best.items()},
            "tried": self.tried,
            "least_matched_fraction": self.matched,
            "left_out": self.left_out,
            "medians": {name: self._medians(name) for name in names},
            "rounds": self.rounds,
        }

    def _medians(self, name: str) -> dict[str, float | None]:
        rows = [found[name] for found in self.rounds]
        return {
            **{
                key: statistics.median(row[key] for row in rows)
                for key in (
                    "fraction_of_ceiling",
                    "fraction_of_peers_ceiling",
                    "fraction_of_unserved",
                    "images_per_second",
                )
            },
            "p99_own_ms": _p99([row["own_load"] for row in rows]),
            "p99_common_ms": _p99([row["common_load"] for row in rows]),
            "generator_cpu_share": max(row["closed"]["cpu_share"] for row in rows),
        }


def _p99(loads: Sequence[dict[str, Any]]) -> float | None:
    """Of the answers of all turns, by nearest rank, in milliseconds.

    None where a request failed: a latency of the others would be a wrong one.
    """
    if any(
        set(load["statuses"]) != {200} or load["timeouts"] or load["failures"] for load in loads
    ):
        return None
    latencies_ms = sorted(ms for load in loads for ms in load["latencies_ms"])
    return latencies_ms[math.ceil(0.99 * len(latencies_ms)) - 1]


def _clean(server: Server, load: Load) -> Load:
    if not load.is_clean:
        raise ServerError(
            f"{server.name} did not answer all requests of the closed loop: {load}. "
            "Its rate would be a wrong one."
        )
    return load


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    given = _parse()
    # An end by SIGTERM must end the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    servers = [SERVERS[name] for name in given.only]
    for server in servers:
        prepare_environment(server, given.environments)
    given.output.mkdir(parents=True, exist_ok=True)
    cases: dict[str, Any] = {}
    results = {
        "seconds": given.seconds,
        "connections": CONNECTIONS,
        "load": LOAD,
        "cases": cases,
    }
    for case in given.cases:
        comparison = Comparison(CASES[case], given)
        for server in servers:
            comparison.tune(server)
        comparison.compare()
        cases[case] = comparison.as_json()
        (given.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        report = write_report(cases, given.output)
    print(report)


def _parse() -> argparse.Namespace:
    def names(known: Sequence[str]) -> Any:
        def read(text: str) -> list[str]:
            chosen = text.split(",")
            if unknown := [name for name in chosen if name not in known]:
                raise argparse.ArgumentTypeError(
                    f"there is no {', '.join(unknown)}; there are {', '.join(known)}"
                )
            return chosen

        return read

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__.partition("\n")[0]
    )
    everyone, cases = list(SERVERS), list(CASES)
    parser.add_argument(
        "--environments", type=Path, required=True, help="where peers are installed"
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="networks, images and logs; default: in output")
    parser.add_argument("--only", type=names(everyone), default=everyone)
    parser.add_argument("--cases", type=names(cases), default=cases)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=4.0, help="per turn")
    parser.add_argument("--tune-seconds", type=float, default=4.0, help="per tuning")
    given = parser.parse_args()
    given.work = (given.work or given.output / "work").absolute()
    given.environments = given.environments.absolute()
    given.work.mkdir(parents=True, exist_ok=True)
    return given


if __name__ == "__main__":
    main()
