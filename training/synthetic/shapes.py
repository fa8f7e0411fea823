"""Outlines for the renderers."""

import numpy as np
from numpy.typing import NDArray


def unit_circle(corners: int) -> NDArray[np.float64]:
    """Return the corners of a regular polygon on the unit circle, (corners, 2)."""
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)
