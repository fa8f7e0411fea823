"""Three times as many requests as the service can answer, for two minutes.

    python -m benchmarks.endurance.overload --seconds 120

One run finds the capacity with closed loops and the p99 at 80 % of it with Poisson arrivals, then
starts the service again with twice that p99 as ``--target-latency-ms``. There: the capacity again,
the overload, and the capacity once more, since the speed of a shared machine drifts; goodput is
compared with the mean of the last two. Generator and service share the machine. Prints Markdown;
the exit status says whether the bounds of docs/measurements/endurance.md held.
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.endurance.service import BUNDLED, PICTURES, Service, running
from benchmarks.load import Load, Target, closed_loop, open_loop

CONNECTIONS = 16
TARGET_TIMES_P99, TIMES_CAPACITY, USUAL_SHARE = 1.8, 3.0, 0.8
MOST_TIMES_P99 = 2.0
LEAST_GOODPUT = 0.95
MOST_REFUSAL_MS = 20.0
MOST_GROWTH_MIB = 16.0


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
    parser.add_argument("pictures", type=Path, nargs="*", default=PICTURES)
    parser.add_argument("--package", type=Path, default=BUNDLED)
    parser.add_argument("--seconds", type=float, default=120.0, help="of overload")
    parser.add_argument("--usual-seconds", type=float, default=20.0, help="of all else")
    given = parser.parse_args()
    print("| load | asked/s | answered/s | p50 ms | p99 ms | 429 | p50 ms | others | its CPU |")
    print("|---|---|---|---|---|---|---|---|---|")
    with running(package=given.package) as service:
        target = Target(service.port, "/detect", given.pictures)
        rate = capacity(target, given.usual_seconds).images_per_second
        usual = open_loop(target, given.usual_seconds, USUAL_SHARE * rate, warmup_s=2)
        show("80 %", usual)
    assert usual.good is not None
    usual_p99_ms = usual.good.latency_ms.p99
    options = ("--target-latency-ms", f"{TARGET_TIMES_P99 * usual_p99_ms:.0f}")
    with running(*options, package=given.package) as service:
        target = Target(service.port, "/detect", given.pictures)
        before = capacity(target, given.usual_seconds)
        with memory_of(service) as memory_mib:
            over = open_loop(target, given.seconds, TIMES_CAPACITY * rate, seed=1, warmup_s=5)
        show("overload", over)
        time.sleep(2)
        after = capacity(target, given.usual_seconds)
    good, refused = over.good, over.statuses.get(429)
    assert good is not None
    assert refused is not None
    full = (before.images_per_second + after.images_per_second) / 2
    half = len(memory_mib) // 2
    growth_mib = max(memory_mib[half:]) - max(memory_mib[:half])
    p99_ratio = good.latency_ms.p99 / usual_p99_ms
    goodput = over.images_per_second / full
    refusal_ms = refused.latency_ms.p50
    lost = over.sent - good.count - refused.count
    of_usual = f"p99 of answers / p99 at 80 % ({usual_p99_ms:.0f} ms)"
    checks = [
        (of_usual, p99_ratio, p99_ratio <= MOST_TIMES_P99, f"<= {MOST_TIMES_P99}"),
        ("goodput / capacity", goodput, goodput >= LEAST_GOODPUT, f">= {LEAST_GOODPUT}"),
        ("429: median ms", refusal_ms, refusal_ms <= MOST_REFUSAL_MS, f"<= {MOST_REFUSAL_MS}"),
        (
            "memory: peak of the second half above the first's, MiB",
            *(growth_mib, growth_mib <= MOST_GROWTH_MIB, f"<= {MOST_GROWTH_MIB}"),
        ),
        ("answers other than 200 and 429, or none", lost, lost == 0, "0"),
    ]
    print(f"\n{os.cpu_count()} cores; {given.seconds:g} s of overload\n\n| | found | asked | |")
    print("|---|---|---|---|")
    for name, found, asked in [(name, found, asked) for name, found, _, asked in checks]:
        print(f"| {name} | {found:.2f} | {asked} |")
    sys.exit(0 if all(holds for _, _, holds, _ in checks) else 1)


if __name__ == "__main__":
    main()
