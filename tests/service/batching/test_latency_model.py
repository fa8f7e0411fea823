"""Expected durations, fitted to observed ones."""

import pytest

from service.batching.latency_model import WINDOW, LatencyModel


def test_fits_a_line() -> None:
    model = LatencyModel()
    assert model.seconds(8) == 0
    for n in (1, 2, 4, 8):
        model.observe(n, 0.01 * n + 0.005)
    assert model.line == pytest.approx((0.01, 0.005))


def test_a_single_size_is_attributed_to_the_slope() -> None:
    model = LatencyModel()
    model.observe(4, 0.02)
    assert model.seconds(8) == pytest.approx(0.04)


def test_known_pairs_keep_the_shape_of_the_line_when_one_size_is_observed() -> None:
    model = LatencyModel([(1, 0.010), (8, 0.045)])
    for _ in range(2 * WINDOW):
        model.observe(8, 0.090)  # twice the known duration
    assert model.seconds(8) == pytest.approx(0.090, rel=0.01)
    assert model.seconds(1) == pytest.approx(0.020, rel=0.05)


def test_observations_override_known_pairs() -> None:
    model = LatencyModel([(1, 0.010), (8, 0.080)])
    for n in [1, 2, 4, 8] * WINDOW:
        model.observe(n, 0.030)
    assert model.seconds(1) == pytest.approx(0.030, rel=0.2)
    assert model.seconds(8) == pytest.approx(0.030, rel=0.2)


@pytest.mark.parametrize("pairs", [[(1, 0.05), (8, 0.01)], [(1, 0.001), (8, 0.1)]])
def test_slope_and_base_are_not_negative(pairs: list[tuple[float, float]]) -> None:
    model = LatencyModel(pairs)
    assert min(model.line) >= 0
    assert model.seconds(4) > 0
