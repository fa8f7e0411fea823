"""Parameter names of the hourglass backbone.

*CornerNet* introduced them; *Objects as Points* and *Keypoint Triplets* use the same backbone.
"""

from collections.abc import Mapping

KEY_PREFIXES: Mapping[str, str] = {
    "pre": "stem",
    "kps": "hourglasses",
    "cnvs": "outputs",
    "inters_": "merge_inputs",
    "cnvs_": "merge_outputs",
    "inters": "merged",
}
"""First part of the upstream keys to the first part of the network keys."""

PARTS: Mapping[str, str] = {
    "up1": "across",
    "low1": "down",
    "low2": "inner",
    "low3": "up",
    "up2": "upsampling",
    "skip": "shortcut",
}
"""Later parts of the keys, upstream to network; see :attr:`KeyMapping.parts`."""


def earlier_stacks(stack: int) -> str:
    """Return a pattern that matches the numbers below ``stack``, for :attr:`KeyMapping.unused`."""
    return f"({'|'.join(str(number) for number in range(stack))})" if stack else r"(?!)"
