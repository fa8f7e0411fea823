"""Three times as many requests as the service can answer, for two minutes.

    python -m benchmarks.endurance.overload --seconds 120

One run finds the capacity with closed loops and the p99 at 80 % of it with Poisson arrivals, then
starts the service again with 1.6 times that p99 as ``--target-latency-ms`` (which is from the whole
body's arrival on, while clients wait a little longer). There: the capacity again, the overload, and
the capacity once more, since the speed of a shared machine drifts; goodput is compared with the
mean of the last two. Generator and service share the machine. Prints Markdown;
the exit status says whether the bounds of docs/measurements/endurance.md held.
"""

import argparse
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.endurance.report import Check, conclude
from benchmarks.endurance.service import BUNDLED, IMAGES, Service, running
from benchmarks.load import Load, Target, closed_loop, open_loop

CONNECTIONS = 8
"""Enough to keep the engine busy, few enough to be admitted: who is refused asks again at once."""
TARGET_TIMES_P99, TIMES_CAPACITY, DEFAULT_SHARE = 1.6, 3.0, 0.8


@contextmanager
def memory_of(service: Service) -> Iterator[list[float]]:
    """Sample the memory, MiB, while the block runs."""
    samples: list[float] = []
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.5):
            samples.append(service.state().memory_mib)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def capacity(target: Target, seconds: float) -> Load:
    load = closed_loop(target, seconds, CONNECTIONS, warmup_s=2)
    show(f"closed loop, {CONNECTIONS} connections", load)
    return load


def show(name: str, load: Load) -> None:
    good, refused = load.good, load.statuses.get(429)
    others = {code: one.count for code, one in load.statuses.items() if code not in (200, 429)}
    print(
        f"| {name} | {load.sent / load.seconds:.1f} | {load.images_per_second:.1f} | "
        + (f"{good.latency_ms.p50:.0f} | {good.latency_ms.p99:.0f} | " if good else "| | ")
        + (f"{refused.count} | {refused.latency_ms.p50:.1f} | " if refused else "0 | | ")
        + f"{others or ''} | {load.cpu_share:.2f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", type=Path, nargs="*", default=IMAGES)
    parser.add_argument("--package", type=Path, default=BUNDLED)
    parser.add_argument("--seconds", type=float, default=120.0, help="of overload")
    parser.add_argument("--default-seconds", type=float, default=20.0, help="of all else")
    given = parser.parse_args()
    print(
        "| load | asked/s | answered/s | p50 ms | p99 ms | 429 | p50 ms | others | generator CPU |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with running(package=given.package) as service:
        target = Target(service.port, "/detect", given.images)
        rate = capacity(target, given.default_seconds).images_per_second
        usual = open_loop(target, given.default_seconds, DEFAULT_SHARE * rate, warmup_s=2)
        show("80 %", usual)
    assert usual.good is not None
    default_p99_ms = usual.good.latency_ms.p99
    options = ("--target-latency-ms", f"{TARGET_TIMES_P99 * default_p99_ms:.0f}")
    with running(*options, package=given.package) as service:
        target = Target(service.port, "/detect", given.images)
        before = capacity(target, given.default_seconds)
        with memory_of(service) as memory_mib:
            over = open_loop(target, given.seconds, TIMES_CAPACITY * rate, seed=1, warmup_s=5)
        show("overload", over)
        time.sleep(2)
        after = capacity(target, given.default_seconds)
    good, refused = over.good, over.statuses.get(429)
    assert good is not None
    assert refused is not None
    full = (before.images_per_second + after.images_per_second) / 2
    half = len(memory_mib) // 2
    growth_mib = max(memory_mib[half:]) - max(memory_mib[:half])
    print(f"\n{os.cpu_count()} cores; {given.seconds:g} s of overload")
    ratio = good.latency_ms.p99 / default_p99_ms
    conclude(
        [
            Check(f"p99 / p99 at 80 % ({default_p99_ms:.0f} ms)", ratio, most=2),
            Check("goodput / capacity", over.images_per_second / full, least=0.95),
            Check("429: median, ms", refused.latency_ms.p50, most=20),
            Check("peak memory of the second half above the first's, MiB", growth_mib, -1e6, 16),
            Check("neither 200 nor 429", over.sent - good.count - refused.count, most=0),
        ]
    )


if __name__ == "__main__":
    main()
