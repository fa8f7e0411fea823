"""Medians and quartiles over the rounds of a benchmark."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Quartiles(NamedTuple):
    """The three quartiles of a sample, interpolated linearly between neighbours."""

    low: float
    median: float
    high: float


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the quartiles of at least one value."""
    return Quartiles(*np.quantile(values, [0.25, 0.5, 0.75]).tolist())


def format_quartiles(values: Sequence[float], decimals: int = 2) -> str:
    """Format as ``median (lower to upper quartile)``."""
    low, median, high = (f"{value:.{decimals}f}" for value in quartiles(values))
    return f"{median} ({low} to {high})"
