"""Two-way mapping between the keys of a family of checkpoints and those of the network."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

_HEAD = re.compile(r"heads\.(?P<head>\w+)(\.(?P<layer>[02]))?")
_NOTHING = r"(?!)"  # a pattern that matches no key

Framework = Literal["authors", "cornernet_lite", "mmdetection"]
"""Code that trained a checkpoint: that of the paper's authors, *CornerNet-Lite*, or MMDetection."""


@dataclass(frozen=True)
class HeadShapes:
    """Prediction heads found in a checkpoint, by network head name."""

    channels: Mapping[str, int]
    hidden_channels: Mapping[str, int]
    """Channels between the two convolutions of a head; 0 for a head of one convolution."""


@dataclass(frozen=True)
class KeyMapping:
    """Two-way translation between upstream checkpoint keys and network keys."""

    names: Mapping[str, str]
    """Upstream key prefixes (whole dotted parts) to network key prefixes; the longest applies."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Single dotted parts after the prefix, upstream to network."""
    unused: str = _NOTHING
    """Pattern of checkpoint keys that inference does not need."""
    framework: Framework = "authors"

    def to_network_key(self, key: str) -> str:
        """Translate a checkpoint key; raises KeyError if the network has no such parameter."""
        return _translate(key, self.names, self.parts)

    def to_checkpoint_key(self, key: str) -> str:
        """Translate a network key; the inverse of :meth:`to_network_key`."""
        return _translate(key, _inverse(self.names), _inverse(self.parts))

    def is_unused(self, key: str) -> bool:
        """Return whether inference does not need this checkpoint key."""
        return re.fullmatch(self.unused, key) is not None

    def find_heads(self, state: Mapping[str, Tensor]) -> HeadShapes:
        """Read the channels of the prediction heads from the weight shapes in ``state``."""
        channels, hidden_channels = {}, {}
        for upstream, local in self.names.items():
            weight = state.get(f"{upstream}.weight")
            match = _HEAD.fullmatch(local)
            if match is None or weight is None or weight.ndim != 4:
                continue
            head = match["head"]
            if match["layer"] == "0":
                hidden_channels[head] = weight.shape[0]
                continue
            channels[head] = weight.shape[0]
            if match["layer"] is None:
                hidden_channels[head] = 0
        return HeadShapes(channels, hidden_channels)

    def shares_layers(self, state: Mapping[str, Tensor]) -> bool:
        """Return whether names in ``state`` begin like those of the network without its heads."""
        layers = {
            upstream.partition(".")[0]
            for upstream, local in self.names.items()
            if not local.startswith("heads.")
        }
        return any(key.partition(".")[0] in layers for key in state)


def _translate(key: str, names: Mapping[str, str], parts: Mapping[str, str]) -> str:
    prefixes = [name for name in names if key.startswith(f"{name}.")]
    if not prefixes:
        raise KeyError(key)
    longest = max(prefixes, key=len)
    rest = key.removeprefix(f"{longest}.").split(".")
    return ".".join([names[longest], *(parts.get(part, part) for part in rest)])


def _inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {local: upstream for upstream, local in names.items()}
