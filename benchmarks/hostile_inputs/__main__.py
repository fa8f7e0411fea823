"""Command line: generate inputs, hold each to the bounds, report, exit 1 if one exceeds them."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.hostile_inputs.bounds import CPU_S, EVENT_LOOP_S, MEMORY_BYTES
from benchmarks.hostile_inputs.campaign import Campaign
from benchmarks.hostile_inputs.readers import FILE_KINDS
from benchmarks.hostile_inputs.request_kinds import REQUESTS
from evaluation.report import markdown_table

KINDS = (*FILE_KINDS, *REQUESTS)


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000, help="inputs, divided by the kinds")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--first", type=int, default=0, help="index of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--failures", type=Path, default=Path("hostile_inputs"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exit with status 1 if an input exceeds a bound."""
    args = read_arguments(arguments)
    count = -(-args.cases // len(args.kinds))
    indices = range(args.first, args.first + count)
    summaries = [
        Campaign(kind, indices, args.seed, args.failures).run(args.jobs) for kind in args.kinds
    ]
    columns = ("kind", "inputs", "accepted", "CPU s", "MB", "event loop ms", "failures")
    print(
        f"Maxima beside the stated cost; bounds: {CPU_S:g} CPU s, {MEMORY_BYTES / 1e6:g} MB, "
        f"{1000 * EVENT_LOOP_S:g} ms.\n"
    )
    print(markdown_table(columns, [summary.row() for summary in summaries]))
    for summary in summaries:
        outcomes = [f"{name} {count:,}" for name, count in summary.outcomes.most_common()]
        print(f"\n{summary.kind}: {', '.join(outcomes)}")
    failures = [failure for summary in summaries for failure in summary.failures]
    for failure in failures:
        print(failure)
    if failures:
        sys.exit(f"{len(failures)} inputs exceed a bound; they are in {args.failures}")


if __name__ == "__main__":
    main()
