"""Measure the CPU time of a request apart from the engine, which returns constant outputs.

    python -m benchmarks.request_overhead docs/samples/*.jpg
    python -m benchmarks.request_overhead docs/samples/*.jpg --baseline ../other-checkout

The load generator shares the cores with the service. The CPU times are those of the threads of the
service, from the scheduler, in microseconds per request.
``--baseline`` measures another checkout in alternating turns; the ratios are medians over the
rounds.
"""

import argparse
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks.constant_package import constant_package
from benchmarks.endurance.service import BUNDLED, PROJECT, Service, run_service
from benchmarks.load import Target, closed_loop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--package", type=Path, default=BUNDLED)
    parser.add_argument("--baseline", type=Path, help="checkout to compare with")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    checkouts = [PROJECT] if args.baseline is None else [args.baseline, PROJECT]
    print("| images/s | event loop us | all threads us |\n|---|---|---|")
    rounds: list[list[Mapping[str, float]]] = []
    with ExitStack() as stack:
        package = stack.enter_context(constant_package(args.package, args.images[0]))
        services = [
            stack.enter_context(run_service(package=package, project=checkout))
            for checkout in checkouts
        ]
        for _ in range(args.rounds):
            rounds.append([_measure(service, args) for service in services])
            for row in rounds[-1]:
                print("|", " | ".join(f"{value:.0f}" for value in row.values()), "|", flush=True)
    for index, checkout in enumerate(checkouts):
        values = {name: median(row[index][name] for row in rounds) for name in rounds[0][0]}
        print(f"median of {checkout}:", *(f"{name} {value:.0f}" for name, value in values.items()))
    if args.baseline is not None:
        for name in rounds[0][0]:
            print(f"{name}: ratio {median(new[name] / old[name] for old, new in rounds):.3f}")


def _measure(service: Service, args: argparse.Namespace) -> Mapping[str, float]:
    target = Target(service.port, "/detect", args.images)
    closed_loop(target, 0.5, args.connections)
    before = _thread_seconds(service)
    load = closed_loop(target, args.seconds, args.connections)
    after = _thread_seconds(service)
    if not load.all_ok:
        raise RuntimeError(f"some requests failed: {load.statuses}")
    used = {thread: 1e6 * (after[thread] - before.get(thread, 0.0)) for thread in after}
    return {
        "images/s": load.images_per_second,
        "event loop": used[str(service.process.pid)] / load.completed,
        "all threads": sum(used.values()) / load.completed,
    }


def _thread_seconds(service: Service) -> Mapping[str, float]:
    """Return the CPU seconds of each thread; the event loop runs in the main thread."""
    threads = Path(f"/proc/{service.process.pid}/task").iterdir()
    return {
        thread.name: int((thread / "schedstat").read_text().split()[0]) / 1e9 for thread in threads
    }


if __name__ == "__main__":
    main()
