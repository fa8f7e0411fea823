"""Parameter names of the hourglass backbone, which three groups of authors share.

*CornerNet* named them; *Objects as Points* and *Keypoint Triplets* took the backbone with its names.
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
"""First part of the upstream names, and of ours."""

PARTS: Mapping[str, str] = {
    "up1": "across",
    "low1": "down",
    "low2": "inner",
    "low3": "up",
    "skip": "shortcut",
}
"""Later parts of the upstream names, and of ours; for a ``KeyMapping``."""


def before(stack: int) -> str:
    """Pattern of the numbers of the stacks before ``stack``, for :attr:`KeyMapping.unused`."""
    return f"({'|'.join(str(number) for number in range(stack))})" if stack else r"(?!)"
