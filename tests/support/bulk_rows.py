"""Comparison of the rows of bulk detection with responses of the service."""

from collections.abc import Mapping
from typing import Any

import pytest


def check_row(row: Mapping[str, Any], response: Mapping[str, Any]) -> bool:
    """Check that a row has what a response to the same image has; return whether it is equal.

    Scores and boxes may differ by rounding: the sums of convolutions depend on the batch size.
    """
    for side in ("width", "height"):
        assert row[side] == response["image"][side]
    found = [
        {name: value for name, value in one.items() if value is not None}
        for one in row["detections"]
    ]
    expected = response["detections"]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == other | {
            "score": pytest.approx(other["score"], abs=1e-4),
            "bbox": pytest.approx(other["bbox"], abs=0.02),
        }
    return bool(found == expected)
