"""Outlines that renderers draw with."""

import numpy as np
from numpy.typing import NDArray


def unit_circle(corners: int) -> NDArray[np.float64]:
    """The corners of a regular polygon around the origin, (corners, 2), at a distance of 1."""
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)
