"""The weights among the content of a checkpoint, and the prefix of their names."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

ENTRIES = (
    *("state_dict_ema", "model_ema", "ema_model", "ema"),
    *("state_dict", "model_state_dict", "model", "network", "net", "weights"),
    # After state_dict, because MMEngine exchanges the two when it saves.
    "ema_state_dict",
)
"""Keys under which training programs store weights; of several, the first is read.

Averages (EMA) come first, as in timm and Ultralytics: their authors validate with them.
"""


def find_entries(content: Mapping[Any, Any]) -> list[str]:
    """Return the keys of ``content`` that hold weights, those of :data:`ENTRIES` in that order."""
    found = [key for key, value in content.items() if isinstance(key, str) and is_state(value)]
    known = [key for key in ENTRIES if key in found]
    return known + [key for key in found if key not in known]


def is_state(value: object) -> bool:
    """Return whether ``value`` is a mapping that contains tensors only."""
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(item, Tensor) for item in value.values())


def common_prefix(names: Sequence[str]) -> str:
    """Return the leading dotted parts that all ``names`` share, such as ``module.model.``.

    No network of the family keeps all of its tensors in one part, so these parts are of a wrapper:
    ``DataParallel``, a Lightning module, a detector around the network.
    """
    if len(names) < 2:
        return ""
    first, last = min(names).split("."), max(names).split(".")
    shared = 0
    while shared < min(len(first), len(last)) - 1 and first[shared] == last[shared]:
        shared += 1
    return "".join(f"{part}." for part in first[:shared])
