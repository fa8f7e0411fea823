"""Parameter names of the hourglass trunk, which three groups of authors share.

*CornerNet* named them; *Objects as Points* and *Keypoint Triplets* took the trunk with its names.
"""

from collections.abc import Mapping

ROOMS: Mapping[str, str] = {
    "pre": "stem",
    "kps": "hourglasses",
    "cnvs": "outputs",
    "inters_": "merge_inputs",
    "cnvs_": "merge_outputs",
    "inters": "merged",
}
"""First part of the authors' names, and of ours."""

PARTS: Mapping[str, str] = {
    "up1": "across",
    "low1": "down",
    "low2": "inner",
    "low3": "up",
    "skip": "shortcut",
}
"""Later parts of the authors' names, and of ours; for a ``Layout``."""


def before(stack: int) -> str:
    """Pattern of the numbers of the stacks before ``stack``, for :attr:`Layout.unused`."""
    return f"({'|'.join(str(number) for number in range(stack))})" if stack else r"(?!)"
