"""Images per second: the bare engine, and the service over HTTP with JPEGs, in one run.

    python benchmarks/throughput.py --package models/blood_cells docs/samples/*.jpg

The service runs in a process of its own; its clients share the machine with it. Rounds of both
alternate, so that a machine whose speed drifts moves both. Prints Markdown.
"""

import argparse
import http.client
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from model_package import load_package
from service.engines import open_engine

STARTED = re.compile(r"running on http://127\.0\.0\.1:(\d+)")


@contextmanager
def running_service(package: Path) -> Iterator[int]:
    """Start ``centernet-serve`` on a free port and give the port."""
    command = [
        *(sys.executable, "-c", "from service.cli import main; main()"),
        *("--models", str(package), "--port", "0"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := STARTED.search(line):
                # Nobody reads on, so the pipe must not fill up.
                threading.Thread(target=process.stderr.read, daemon=True).start()
                yield int(found[1])
                return
        raise RuntimeError("the service did not start")
    finally:
        process.terminate()
        process.wait(30)


def engine_rate(run: "EngineRun", seconds: float) -> float:
    """Images per second of the engine alone."""
    done, started_at = 0, time.perf_counter()
    while time.perf_counter() - started_at < seconds:
        done += run()
    return done / (time.perf_counter() - started_at)


class EngineRun:
    """One call is one batch of noise through the engine."""

    def __init__(self, package: Path, batch_size: int) -> None:
        loaded = load_package(package)
        self._engine = open_engine(loaded, "onnxruntime-cpu", os.cpu_count() or 1)
        spec = loaded.manifest.input
        self._images = np.random.default_rng(0).integers(
            0, 256, (batch_size, spec.height_px, spec.width_px, 3), np.uint8
        )
        self()

    def __call__(self) -> int:
        """Run one batch; return its size."""
        self._engine.run(self._images)
        return len(self._images)


def served_rate(
    port: int, bodies: list[bytes], clients: int, seconds: float
) -> tuple[float, list[float]]:
    """Images per second and every latency (s) of closed-loop clients."""
    stop_at = time.perf_counter() + seconds
    latencies: list[float] = []

    def ask(index: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while (started_at := time.perf_counter()) < stop_at:
            body = bodies[index % len(bodies)]
            index += 1
            connection.request("POST", "/detect", body, {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            content = response.read()
            if response.status != 200:
                raise RuntimeError(content.decode())
            latencies.append(time.perf_counter() - started_at)
        connection.close()

    started_at = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        # The list raises what a client raised: a rate without it would be a wrong one.
        list(threads.map(ask, range(clients)))
    return len(latencies) / (time.perf_counter() - started_at), latencies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
    given = parser.parse_args()
    bodies = [path.read_bytes() for path in given.pictures]
    singles, batches, served = (EngineRun(given.package, 1), EngineRun(given.package, 8), [])
    engine_one, engine_eight, latencies = [], [], []
    with running_service(given.package) as port:
        served_rate(port, bodies, given.clients, 1.0)  # warm-up
        for round_number in range(given.rounds):
            print(f"round {round_number + 1} of {given.rounds}", file=sys.stderr)
            engine_one.append(engine_rate(singles, given.seconds))
            engine_eight.append(engine_rate(batches, given.seconds))
            rate, taken = served_rate(port, bodies, given.clients, given.seconds)
            served.append(rate)
            latencies += taken
    best = [max(pair) for pair in zip(engine_one, engine_eight, strict=True)]
    ratio = statistics.median(s / b for s, b in zip(served, best, strict=True))
    print(f"{os.cpu_count()} cores, {given.clients} clients, {given.rounds} rounds; medians\n")
    print("| | images/s |\n|---|---|")
    print(f"| engine alone, batch 1 | {statistics.median(engine_one):.1f} |")
    print(f"| engine alone, batch 8 | {statistics.median(engine_eight):.1f} |")
    print(f"| HTTP, JPEG in, boxes out | {statistics.median(served):.1f} |")
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99]) * 1000
    print(f"\nHTTP / better engine: {ratio:.2f}; ", end="")
    print(f"latency p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms.")


if __name__ == "__main__":
    main()
