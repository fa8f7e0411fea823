"""The numbers of a curve: all rounds, as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Point:
    """The measurements at one value of the horizontal axis, one per round."""

    x: float
    images_per_s: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Curve:
    """Throughput and p99 over one quantity, for one or more series.

    Attributes:
        title: what was varied.
        x_label: the quantity on the horizontal axis, with its unit.
        x_is_log: whether the axis is logarithmic, with a tick at each point.
        p99_label: the load at which the p99 was measured.
        conditions: processor, model and command, in words.
        series: points by the name of the series.
    """

    title: str
    x_label: str
    x_is_log: bool
    p99_label: str
    conditions: Mapping[str, str]
    series: Mapping[str, Sequence[Point]]


def write_curve(curve: Curve, path: Path) -> None:
    """Write all numbers of a curve."""
    path.write_text(json.dumps(asdict(curve), indent=1) + "\n")


def read_curve(path: Path) -> Curve:
    """Read what :func:`write_curve` wrote."""
    fields = json.loads(path.read_text())
    series = {
        name: [Point(**point) for point in points] for name, points in fields["series"].items()
    }
    return Curve(**fields | {"series": series})
