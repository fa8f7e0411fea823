"""What past durations say of the next one."""

import pytest

from service.batching.latency_model import WINDOW, LatencyModel


def test_a_line_is_found() -> None:
    estimate = LatencyModel()
    assert estimate.seconds(8) == 0
    for n in (1, 2, 4, 8):
        estimate.observe(n, 0.01 * n + 0.005)
    assert estimate.line == pytest.approx((0.01, 0.005))


def test_one_size_alone_says_nothing_of_a_base() -> None:
    estimate = LatencyModel()
    estimate.observe(4, 0.02)
    assert estimate.seconds(8) == pytest.approx(0.04)


def test_what_is_known_keeps_the_slope_when_only_one_size_is_seen() -> None:
    estimate = LatencyModel([(1, 0.010), (8, 0.045)])
    for _ in range(2 * WINDOW):
        estimate.observe(8, 0.090)  # everything takes twice as long now
    assert estimate.seconds(8) == pytest.approx(0.090, rel=0.01)
    assert estimate.seconds(1) == pytest.approx(0.020, rel=0.05)


def test_what_is_seen_overrules_what_was_known() -> None:
    estimate = LatencyModel([(1, 0.010), (8, 0.080)])
    for n in [1, 2, 4, 8] * WINDOW:
        estimate.observe(n, 0.030)
    assert estimate.seconds(1) == pytest.approx(0.030, rel=0.2)
    assert estimate.seconds(8) == pytest.approx(0.030, rel=0.2)


@pytest.mark.parametrize("pairs", [[(1, 0.05), (8, 0.01)], [(1, 0.001), (8, 0.1)]])
def test_neither_part_is_negative(pairs: list[tuple[float, float]]) -> None:
    estimate = LatencyModel(pairs)
    assert min(estimate.line) >= 0
    assert estimate.seconds(4) > 0
