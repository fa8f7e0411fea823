"""Comparison of detections by matching: near-equal scores may be ranked differently."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class MatchError:
    """Differences of two sets of detections; offsets are signed, so that a shift is visible."""

    matched: float
    worst_score: float
    worst_corner_px: float
    mean_offset_px: float

    def __str__(self) -> str:
        return (
            f"matched {self.matched:.2f}, score {self.worst_score:.1e}, "
            f"corner {self.worst_corner_px:.1e} px, mean offset {self.mean_offset_px:.1e} px"
        )


def match_boxes(local: NDArray[np.float64], upstream: NDArray[np.float64]) -> MatchError:
    """Match rows of (x1, y1, x2, y2, score, class): same class, nearest corners within 8 px.

    Not by labels.matching: the nearest boxes must be unique without an assignment.
    """
    distance = np.abs(local[:, None, :4] - upstream[None, :, :4]).max(axis=2)
    distance[local[:, None, 5] != upstream[None, :, 5]] = np.inf
    nearest = distance.argmin(axis=1)
    rows = np.flatnonzero(distance[np.arange(len(local)), nearest] < 8)
    pairs = nearest[rows]
    assert len(set(pairs.tolist())) == len(pairs), "two detections have the same nearest one"
    difference = local[rows, :4] - upstream[pairs, :4]
    return MatchError(
        matched=len(rows) / max(len(local), len(upstream)),
        worst_score=float(np.abs(local[rows, 4] - upstream[pairs, 4]).max()),
        worst_corner_px=float(np.abs(difference).max()),
        mean_offset_px=float(np.abs(difference.mean(axis=0)).max()),
    )
