"""Soak test: mixed load for a long time, without growth of memory, threads or open files.

    python -m benchmarks.endurance.soak --minutes 60

Three streams with Poisson arrivals run at the same time: images, where a tenth of the clients
disconnects; hostile files of benchmarks/hostile_inputs; and images with deadlines that cannot
always be met. Memory growth is the slope of a line fitted after the first quarter, which is the
warm-up.
Prints Markdown; the exit status is 1 if something grew or a response had an unexpected status.
"""

import argparse
import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.endurance.report import Check, exit_with_checks
from benchmarks.endurance.service import IMAGES, ProcessState, Service, run_service
from benchmarks.hostile_inputs.campaign import input_of
from benchmarks.hostile_inputs.readers import IMAGE_KINDS
from benchmarks.load import Load, Target, closed_loop, open_loop
from evaluation.report import markdown_row, markdown_table

FILES_PER_KIND = 500
DEADLINE_MS = 150
SAMPLE_S = 2.0
EXPECTED_STATUSES = {200, 400, 413, 415, 429, 504}
"""504 is expected for requests with a deadline only."""
SETTLE_S = 20.0
"""Idle keep-alive connections are closed within this time."""


def write_hostile_files(folder: Path, per_kind: int) -> list[Path]:
    paths = []
    for kind, index in itertools.product(IMAGE_KINDS, range(per_kind)):
        if body := input_of(kind, 0, index):
            paths.append(folder / f"{kind}-{index}")
            paths[-1].write_bytes(body)
    return paths


def streams(
    service: Service, hostile: list[Path], rate: float, seconds: float
) -> list[Callable[[], Load]]:
    """Return the three streams; ``rate`` is the capacity, in images per second."""
    images = Target(service.port, "/detect", IMAGES)
    invalid = Target(service.port, "/detect", hostile, ())
    deadline = (f"X-Deadline-Ms: {DEADLINE_MS}", "Content-Type: image/jpeg")
    with_deadline = Target(service.port, "/detect", IMAGES, deadline)
    return [
        lambda: open_loop(images, seconds, 0.35 * rate, seed=1, disconnect_fraction=0.1),
        lambda: open_loop(invalid, seconds, 0.6 * rate, seed=2),
        lambda: open_loop(with_deadline, seconds, 0.3 * rate, seed=3),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    args = parser.parse_args()
    seconds = 60 * args.minutes
    with (
        tempfile.TemporaryDirectory() as folder,
        run_service("--self-test-interval-s", "5") as service,
    ):
        hostile = write_hostile_files(Path(folder), FILES_PER_KIND)
        target = Target(service.port, "/detect", IMAGES)
        rate = closed_loop(target, 10, 32, warmup_s=2).images_per_second
        time.sleep(SETTLE_S)
        idle_before = service.state()
        samples: list[tuple[float, ProcessState]] = []
        failed_scrapes = 0
        started_at = time.monotonic()
        with ThreadPoolExecutor(3) as threads:
            futures = [
                threads.submit(stream) for stream in streams(service, hostile, rate, seconds)
            ]
            while not all(future.done() for future in futures):
                samples.append(((time.monotonic() - started_at) / 3600, service.state()))
                try:
                    service.metrics()
                except OSError:  # counted below; the run continues
                    failed_scrapes += 1
                time.sleep(SAMPLE_S)
            loads = [future.result() for future in futures]
        time.sleep(SETTLE_S)
        idle_after = service.state()
    report(samples, loads, idle_before, idle_after, failed_scrapes)


def report(
    samples: list[tuple[float, ProcessState]],
    loads: list[Load],
    before: ProcessState,
    after: ProcessState,
    failed_scrapes: int,
) -> None:
    names = ("images, a tenth disconnects", "hostile files", f"deadline {DEADLINE_MS} ms")
    print(markdown_table(["stream", "sent", "responses", "disconnected", "no response"]))
    for name, load in zip(names, loads, strict=True):
        statuses = ", ".join(f"{code}: {one.count}" for code, one in sorted(load.statuses.items()))
        missing = load.failures + load.timeouts
        print(markdown_row([name, load.sent, statuses, load.disconnected, missing]))
    print("\n" + markdown_table(["hours", "memory MiB", "threads", "files", "sockets"]))
    states = [(f"{at:.3f}", state) for at, state in samples[:: max(1, len(samples) // 10)]]
    for at, state in [("idle before", before), *states, ("idle after", after)]:
        memory = f"{state.memory_mib:.1f}"
        print(markdown_row([at, memory, state.threads, state.files, state.sockets]))
    fitted = samples[len(samples) // 4 :]
    hours = np.array([at for at, _ in fitted])
    slope = np.polyfit(hours, [state.memory_mib for _, state in fitted], 1)[0]
    counts: Counter[int] = Counter()
    for load in loads:
        counts.update({code: one.count for code, one in load.statuses.items()})
    unexpected = sum(count for code, count in counts.items() if code not in EXPECTED_STATUSES)
    unexpected += sum(load.statuses[504].count for load in loads[:2] if 504 in load.statuses)
    growth_mib = slope * (hours[-1] - hours[0])
    print(f"\nslope {slope:.2f} MiB/h over {hours[-1] - hours[0]:.2f} h")
    exit_with_checks(
        [
            Check("fitted memory growth after the warm-up, MiB", growth_mib, -1e6, 4),
            Check("additional threads", after.threads - before.threads, -1e6, 0),
            Check("additional open files", after.files - before.files, -1e6, 0),
            Check("additional sockets", after.sockets - before.sockets, -1e6, 0),
            Check("responses with an unexpected status", unexpected, max=0),
            Check("failed scrapes", failed_scrapes, max=0),
            Check(
                "requests without a response",
                sum(load.failures + load.timeouts for load in loads),
                max=0,
            ),
        ]
    )


if __name__ == "__main__":
    main()
