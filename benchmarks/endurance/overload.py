"""Overload: send three times the capacity of the service for two minutes.

    python -m benchmarks.endurance.overload --seconds 120

The first service process is used to measure the capacity with a closed loop, and the p99 at 80 % of
it with Poisson arrivals. The second one is started with 1.6 times that p99 as
``--target-latency-ms``, which counts from the complete arrival of the body, so the latency of
clients is a little higher. There the capacity is measured before and after the overload, because
the speed of a shared machine drifts; goodput is compared with the mean of both. Load generator and
service share the machine. Prints Markdown; the exit status is 1 if a bound of
docs/measurements/endurance.md is exceeded.
"""

import argparse
import os
import time
from pathlib import Path

from benchmarks.endurance.report import Check, exit_with_checks
from benchmarks.endurance.service import BUNDLED, IMAGES, run_service, sample
from benchmarks.load import Load, Target, closed_loop, open_loop
from evaluation.report import markdown_row, markdown_table

CONNECTIONS = 8
"""Enough to keep the engine busy, few enough to avoid rejections, which are retried immediately."""
TARGET_TIMES_P99, TIMES_CAPACITY, BASELINE_LOAD = 1.6, 3.0, 0.8


def capacity(target: Target, seconds: float) -> Load:
    load = closed_loop(target, seconds, CONNECTIONS, warmup_s=2)
    print_row(f"closed loop, {CONNECTIONS} connections", load)
    return load


def print_row(name: str, load: Load) -> None:
    ok, rejected = load.ok, load.statuses.get(429)
    others = {code: one.count for code, one in load.statuses.items() if code not in (200, 429)}
    row = markdown_row(
        [
            *(name, f"{load.sent / load.seconds:.1f}", f"{load.images_per_second:.1f}"),
            *((f"{ok.latency_ms.p50:.0f}", f"{ok.latency_ms.p99:.0f}") if ok else ("", "")),
            *((rejected.count, f"{rejected.latency_ms.p50:.1f}") if rejected else (0, "")),
            *(str(others or ""), f"{load.cpu_share:.2f}"),
        ]
    )
    print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", type=Path, nargs="*", default=IMAGES)
    parser.add_argument("--package", type=Path, default=BUNDLED)
    parser.add_argument("--seconds", type=float, default=120.0, help="duration of the overload")
    parser.add_argument(
        "--baseline-seconds",
        type=float,
        default=20.0,
        help="duration of each other measurement",
    )
    args = parser.parse_args()
    print(
        markdown_table(
            [
                *("load", "requests/s", "status 200/s", "p50 ms", "p99 ms"),
                *("429", "p50 ms", "other statuses", "generator CPU"),
            ]
        )
    )
    with run_service(package=args.package) as service:
        target = Target(service.port, "/detect", args.images)
        rate = capacity(target, args.baseline_seconds).images_per_second
        baseline = open_loop(target, args.baseline_seconds, BASELINE_LOAD * rate, warmup_s=2)
        print_row("80 %", baseline)
    assert baseline.ok is not None
    baseline_p99_ms = baseline.ok.latency_ms.p99
    options = ("--target-latency-ms", f"{TARGET_TIMES_P99 * baseline_p99_ms:.0f}")
    with run_service(*options, package=args.package) as service:
        target = Target(service.port, "/detect", args.images)
        before = capacity(target, args.baseline_seconds)
        with sample(lambda: service.state().memory_mib) as memory_mib:
            overload = open_loop(target, args.seconds, TIMES_CAPACITY * rate, seed=1, warmup_s=5)
        print_row("overload", overload)
        time.sleep(2)
        after = capacity(target, args.baseline_seconds)
    ok, rejected = overload.ok, overload.statuses.get(429)
    assert ok is not None
    assert rejected is not None
    capacity_rate = (before.images_per_second + after.images_per_second) / 2
    half = len(memory_mib) // 2
    growth_mib = max(memory_mib[half:]) - max(memory_mib[:half])
    print(f"\n{os.cpu_count()} cores; {args.seconds:g} s of overload")
    ratio = ok.latency_ms.p99 / baseline_p99_ms
    exit_with_checks(
        [
            Check(f"p99 / p99 at 80 % ({baseline_p99_ms:.0f} ms)", ratio, max=2),
            Check("goodput / capacity", overload.images_per_second / capacity_rate, min=0.95),
            Check("status 429: median latency, ms", rejected.latency_ms.p50, max=20),
            Check("peak memory, second half minus first half, MiB", growth_mib, -1e6, 16),
            Check("neither 200 nor 429", overload.sent - ok.count - rejected.count, max=0),
        ]
    )


if __name__ == "__main__":
    main()
