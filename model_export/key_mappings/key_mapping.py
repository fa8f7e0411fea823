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
            _first_part(upstream)
            for upstream, local in self.names.items()
            if not local.startswith("heads.")
        }
        return any(_first_part(key) in layers for key in state)

    def find_other_heads(self, state: Mapping[str, Tensor]) -> dict[str, list[str]]:
        """Return the keys of heads in ``state`` that the network does not have, by head.

        Such a head is a part of its own with as many input channels as one of the known heads.
        """
        known = {_first_part(upstream) for upstream in self.names}
        heads = {
            _first_part(upstream)
            for upstream, local in self.names.items()
            if local.startswith("heads.")
        }
        in_channels = {
            weight.shape[1]
            for key, weight in state.items()
            if _first_part(key) in heads and weight.ndim == 4
        }
        parts: dict[str, list[str]] = {}
        for key in state:
            if _first_part(key) not in known:
                parts.setdefault(_first_part(key), []).append(key)
        return {
            part: keys
            for part, keys in parts.items()
            if state[keys[0]].ndim == 4 and state[keys[0]].shape[1] in in_channels
        }


def _first_part(key: str) -> str:
    return key.partition(".")[0]


def _translate(key: str, names: Mapping[str, str], parts: Mapping[str, str]) -> str:
    prefixes = [name for name in names if key.startswith(f"{name}.")]
    if not prefixes:
        raise KeyError(key)
    longest = max(prefixes, key=len)
    rest = key.removeprefix(f"{longest}.").split(".")
    return ".".join([names[longest], *(parts.get(part, part) for part in rest)])


def _inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {local: upstream for upstream, local in names.items()}
