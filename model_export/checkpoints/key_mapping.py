"""How a family of checkpoints names its tensors, as data."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

_HEAD = re.compile(r"heads\.(?P<head>\w+)\.(?P<layer>[02])")
_NOTHING = r"(?!)"  # a pattern that no key fits


@dataclass(frozen=True)
class HeadShapes:
    """Prediction heads found in a checkpoint, under our names."""

    channels: Mapping[str, int]
    hidden_channels: int | None
    """Channels between a head's two convolutions; None where no head was found."""


@dataclass(frozen=True)
class KeyMapping:
    """Two-way translation between the upstream names and a network's."""

    names: Mapping[str, str]
    """How their keys begin, up to a dot, and what stands there in the network."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Single parts, between dots, of what follows; theirs and ours."""
    unused: str = _NOTHING
    """Pattern of the keys that are stored but that inference does not need."""

    def to_network_key(self, key: str) -> str:
        """Translate a checkpoint key; raises KeyError for one that the network does not have."""
        return _translate(key, self.names, self.parts)

    def to_checkpoint_key(self, key: str) -> str:
        """Translate a key of the network; undoes :meth:`to_network_key`."""
        return _translate(key, _inverse(self.names), _inverse(self.parts))

    def is_unused(self, key: str) -> bool:
        """Whether a checkpoint key is one that inference does not need."""
        return re.fullmatch(self.unused, key) is not None

    def find_heads(self, state: Mapping[str, Tensor]) -> HeadShapes:
        """Read from the shapes in ``state`` which heads there are."""
        found: dict[str, dict[str, int]] = {"0": {}, "2": {}}
        for upstream, local in self.names.items():
            weight = state.get(f"{upstream}.weight")
            if (match := _HEAD.fullmatch(local)) and weight is not None and weight.ndim == 4:
                found[match["layer"]][match["head"]] = weight.shape[0]
        return HeadShapes(found["2"], next(iter(found["0"].values()), None))


def _translate(key: str, names: Mapping[str, str], parts: Mapping[str, str]) -> str:
    beginnings = [name for name in names if key.startswith(f"{name}.")]
    if not beginnings:
        raise KeyError(key)
    longest = max(beginnings, key=len)
    rest = key.removeprefix(f"{longest}.").split(".")
    return ".".join([names[longest], *(parts.get(part, part) for part in rest)])


def _inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {local: upstream for upstream, local in names.items()}
