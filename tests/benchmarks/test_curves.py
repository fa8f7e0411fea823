"""The arithmetic, the files and the figures of the curves."""

import re
from pathlib import Path

import pytest

from benchmarks.curves.curve import Curve, Point, read_curve, write_curve
from benchmarks.curves.drawing import draw_curve
from benchmarks.curves.measuring import Sample, run_rounds, sample_of
from benchmarks.load import Record
from benchmarks.quartiles import format_quartiles, quartiles


def curve(x_is_log: bool = True) -> Curve:
    points = [Point(1, [10.0, 12.0], [50.0, 60.0]), Point(4, [30.0, 36.0], [])]
    return Curve(
        "a title", "batch size", x_is_log, "at 80 %", {"cpu": "a CPU"}, {"bf16": points, "x": []}
    )


def test_quartiles_interpolate() -> None:
    assert quartiles([1.0, 2.0, 3.0, 4.0]) == (1.75, 2.5, 3.25)
    assert format_quartiles([1.0, 2.0, 3.0, 4.0], 1) == "2.5 (1.8 to 3.2)"
    assert format_quartiles([0.5]) == "0.50 (0.50 to 0.50)"


def test_a_sample_counts_the_responses_that_arrived_in_its_time() -> None:
    records = [
        Record(0.1, 500.0, 200),  # arrives in time, scheduled before: no latency
        Record(0.2, 100.0, 200),  # too early
        Record(1.0, 100.0, 200),
        Record(1.1, 300.0, 429),
        Record(1.2, 1500.0, 200),  # scheduled in time, arrives too late: latency only
        Record(2.6, 10.0, 200),  # too late
    ]
    assert sample_of(records, 0.5, 2.5) == Sample(1.0, 1500.0)


def test_a_sample_without_responses_has_no_p99() -> None:
    assert sample_of([Record(1.0, 5.0, 429)], 0.5, 2.5) == Sample(0.0, None)


def test_the_p99_of_a_sample_is_by_nearest_rank() -> None:
    records = [Record(0.001 * number, float(number), 200) for number in range(1, 201)]
    assert sample_of(records, 0.0, 10.0).p99_ms == 198.0


def test_every_point_is_measured_once_per_round_with_the_same_seed() -> None:
    seeds: dict[float, list[int]] = {1: [], 2: []}

    def measure(x: int, seed: int) -> Sample:
        seeds[x].append(seed)
        return Sample(10.0 * x + seed, None if x == 1 and seed else 5.0)

    series = run_rounds(
        {("a", 1): lambda seed: measure(1, seed), ("b", 2): lambda seed: measure(2, seed)}, 3
    )
    assert seeds == {1: [0, 1, 2], 2: [0, 1, 2]}
    assert series == {
        "a": [Point(1, [10.0, 11.0, 12.0], [5.0])],
        "b": [Point(2, [20.0, 21.0, 22.0], [5.0, 5.0, 5.0])],
    }


def test_a_curve_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_curve(curve(), tmp_path / "curve.json")
    assert read_curve(tmp_path / "curve.json") == curve()


@pytest.mark.parametrize("x_is_log", [True, False])
def test_the_figure_has_the_labels_and_the_same_bytes_every_time(
    tmp_path: Path, x_is_log: bool
) -> None:
    files = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for file in files:
        draw_curve(curve(x_is_log), file)
    text = files[0].read_text()
    assert text == files[1].read_text()
    for label in ("a title", "batch size", "images/s", "p99 in ms, at 80 %", "bf16"):
        assert f">{label}</text>" in text


DOCUMENTED = Path(__file__).parents[2] / "docs" / "measurements" / "curves"


@pytest.mark.parametrize("numbers", sorted(DOCUMENTED.glob("*.json")), ids=lambda path: path.stem)
def test_the_documented_figures_are_those_of_the_documented_numbers(
    numbers: Path, tmp_path: Path
) -> None:
    draw_curve(read_curve(numbers), tmp_path / "drawn.svg")
    # The texts include the ticks, and so the ranges. Coordinates may differ between versions.
    drawn, documented = (
        re.findall(r">([^<>]+)</text>", path.read_text())
        for path in (tmp_path / "drawn.svg", numbers.with_suffix(".svg"))
    )
    assert drawn == documented
