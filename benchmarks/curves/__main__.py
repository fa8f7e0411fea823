"""Measure and draw throughput and latency over load, image size, batch size and models.

    python -m benchmarks.curves load image-size batch-size models --output docs/measurements/curves
    python -m benchmarks.curves load --output docs/measurements/curves --draw

Each curve is written as NAME.json (all rounds) and NAME.svg; ``--draw`` draws the numbers that are
stored already. The model is the bundled one; the images are rendered. The points alternate within
each round, because the speed of the processor may drift. The load generator shares the cores with
the service.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks.cpu import describe_cpu
from benchmarks.curves.curve import Curve, Point, read_curve, write_curve
from benchmarks.curves.drawing import draw_curve
from benchmarks.curves.measuring import (
    CONNECTIONS,
    LOAD,
    measure_batch_size,
    measure_image_size,
    measure_load,
    measure_models,
)

_P99_AT_OWN_LOAD = f"at {LOAD:.0%} of this throughput"


class Description(NamedTuple):
    """The measurement of a curve and its labels; see :class:`Curve`."""

    measure: Callable[[Path, int, float], dict[str, list[Point]]]
    title: str
    x_label: str
    x_is_log: bool = True
    p99_label: str = _P99_AT_OWN_LOAD


CURVES = {
    "load": Description(
        measure_load,
        "Offered load, Poisson arrivals",
        "offered load in images/s",
        False,
        "requests with status 200",
    ),
    "image-size": Description(
        measure_image_size, f"Image size, {CONNECTIONS} connections", "pixels per JPEG, in millions"
    ),
    "batch-size": Description(
        measure_batch_size,
        f"Batch size and precision, {CONNECTIONS} connections",
        "maximum batch size in images",
    ),
    "models": Description(
        measure_models,
        f"Models in one service, {CONNECTIONS} connections",
        "number of models",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.curves", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "curves", nargs="+", choices=CURVES, metavar="CURVE", help=", ".join(CURVES)
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement")
    parser.add_argument("--draw", action="store_true", help="draw stored numbers only")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for name in args.curves:
        path = args.output / f"{name}.json"
        if not args.draw:
            write_curve(_measure(CURVES[name], args.rounds, args.seconds), path)
        draw_curve(read_curve(path), path.with_suffix(".svg"))


def _measure(description: Description, rounds: int, seconds: float) -> Curve:
    with TemporaryDirectory() as work:
        series = description.measure(Path(work), rounds, seconds)
    conditions = {
        "cpu": describe_cpu(),
        "command": f"python -m benchmarks.curves {' '.join(sys.argv[1:])}",
    }
    _, *labels = description
    return Curve(*labels, conditions, series)


if __name__ == "__main__":
    main()
