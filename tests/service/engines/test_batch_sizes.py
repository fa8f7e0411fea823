"""Batch sizes that are measured at warm-up and captured as CUDA graphs."""

import pytest

from service.engines.batch_sizes import power_of_two_batch_sizes


@pytest.mark.parametrize(
    ("minimum", "maximum", "sizes"),
    [
        (1, 1, [1]),
        (1, 6, [1, 2, 4, 6]),
        (1, 8, [1, 2, 4, 8]),
        (1, 12, [1, 2, 4, 8, 12]),
        (3, 12, [3, 4, 8, 12]),
    ],
)
def test_batch_sizes_are_powers_of_two_and_both_bounds(
    minimum: int, maximum: int, sizes: list[int]
) -> None:
    assert power_of_two_batch_sizes(maximum, minimum) == sizes
