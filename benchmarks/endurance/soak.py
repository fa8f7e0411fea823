"""Good and bad images, hang-ups and deadlines, for long: nothing may grow.

    python -m benchmarks.endurance.soak --minutes 60

Three streams of Poisson arrivals at once: images, of whose clients a tenth hang up; damaged files
of benchmarks/mutants.py; and images with deadlines that cannot always be met. Memory is fitted
with a line after the first quarter, the warm-up. Prints Markdown; the exit status is 1 if something
grew, or somebody got an answer with a status that was not meant.
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

from benchmarks.endurance.report import Check, conclude
from benchmarks.endurance.service import IMAGES, ProcessState, Service, running
from benchmarks.load import Load, Target, closed_loop, open_loop
from benchmarks.mutants import mutants, originals

MUTANTS = 2000
DEADLINE_MS = 150
SAMPLE_S = 2.0
MEANT = {200, 400, 413, 415, 429, 504}
"""Of those, 504 is for deadlines only."""
SETTLE_S = 20.0
"""Kept connections that nobody uses are closed within this."""


def write_mutants(folder: Path) -> list[Path]:
    paths = []
    for number, body in enumerate(itertools.islice(mutants(0, originals()), MUTANTS)):
        paths.append(folder / f"{number}")
        paths[-1].write_bytes(body)
    return [path for path in paths if path.stat().st_size]


def streams(
    service: Service, bad: list[Path], rate: float, seconds: float
) -> list[Callable[[], Load]]:
    """The three streams; ``rate`` is the capacity, of which they ask for three quarters."""
    images = Target(service.port, "/detect", IMAGES)
    damaged = Target(service.port, "/detect", bad, ())
    deadline = (f"X-Deadline-Ms: {DEADLINE_MS}", "Content-Type: image/jpeg")
    hurried = Target(service.port, "/detect", IMAGES, deadline)
    return [
        lambda: open_loop(images, seconds, 0.35 * rate, seed=1, disconnect_fraction=0.1),
        lambda: open_loop(damaged, seconds, 0.6 * rate, seed=2),
        lambda: open_loop(hurried, seconds, 0.3 * rate, seed=3),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    given = parser.parse_args()
    seconds = 60 * given.minutes
    with tempfile.TemporaryDirectory() as folder, running("--self-test-interval-s", "5") as service:
        bad = write_mutants(Path(folder))
        target = Target(service.port, "/detect", IMAGES)
        rate = closed_loop(target, 10, 32, warmup_s=2).images_per_second
        time.sleep(SETTLE_S)
        idle_first = service.state()
        samples: list[tuple[float, ProcessState]] = []
        unscraped = 0
        began_at = time.monotonic()
        with ThreadPoolExecutor(3) as threads:
            running_streams = [threads.submit(one) for one in streams(service, bad, rate, seconds)]
            while not all(one.done() for one in running_streams):
                samples.append(((time.monotonic() - began_at) / 3600, service.state()))
                try:
                    service.observability.metrics()
                except OSError:  # an hour's report is worth more than one scrape
                    unscraped += 1
                time.sleep(SAMPLE_S)
            loads = [one.result() for one in running_streams]
        time.sleep(SETTLE_S)
        idle_last = service.state()
    report(samples, loads, idle_first, idle_last, unscraped)


def report(
    samples: list[tuple[float, ProcessState]],
    loads: list[Load],
    first: ProcessState,
    last: ProcessState,
    unscraped: int,
) -> None:
    names = ("images, a tenth hang up", "damaged files", f"deadlines of {DEADLINE_MS} ms")
    print("| stream | sent | answers | hung up | no answer |\n|---|---|---|---|---|")
    for name, load in zip(names, loads, strict=True):
        answers = ", ".join(f"{code}: {one.count}" for code, one in sorted(load.statuses.items()))
        unanswered = load.failures + load.timeouts
        print(f"| {name} | {load.sent} | {answers} | {load.disconnected} | {unanswered} |")
    print("\n| hours | memory MiB | threads | files | sockets |\n|---|---|---|---|---|")
    some = [(f"{at:.3f}", one) for at, one in samples[:: max(1, len(samples) // 10)]]
    for at, one in [("idle before", first), *some, ("idle after", last)]:
        print(f"| {at} | {one.memory_mib:.1f} | {one.threads} | {one.files} | {one.sockets} |")
    fitted = samples[len(samples) // 4 :]
    hours = np.array([at for at, _ in fitted])
    slope = np.polyfit(hours, [one.memory_mib for _, one in fitted], 1)[0]
    counts: Counter[int] = Counter()
    for load in loads:
        counts.update({code: one.count for code, one in load.statuses.items()})
    unmeant = sum(number for code, number in counts.items() if code not in MEANT)
    unmeant += sum(load.statuses[504].count for load in loads[:2] if 504 in load.statuses)
    grown_mib = slope * (hours[-1] - hours[0])
    print(f"\nslope {slope:.2f} MiB/h over {hours[-1] - hours[0]:.2f} h")
    conclude(
        [
            Check("memory after the warm-up: fitted growth, MiB", grown_mib, -1e6, 4),
            Check("threads more than before", last.threads - first.threads, -1e6, 0),
            Check("open files more than before", last.files - first.files, -1e6, 0),
            Check("sockets more than before", last.sockets - first.sockets, -1e6, 0),
            Check("answers not meant", unmeant, most=0),
            Check("scrapes without an answer", unscraped, most=0),
            Check("no answer", sum(load.failures + load.timeouts for load in loads), most=0),
        ]
    )


if __name__ == "__main__":
    main()
