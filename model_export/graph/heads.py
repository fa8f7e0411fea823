"""Prediction heads: channels, activation and flip averaging."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """A prediction head, one dense map of the network."""

    channels: int
    per: Literal["map", "class", "keypoint"] = "map"
    """Unit of ``channels``: per map, per class or per keypoint."""
    optional: bool = False
    """The upstream code also trains networks without this head."""
    heatmap: bool = False
    """The raw values are logits of scores."""
    flipped: bool = True
    """Flip averaging includes this head; offsets inside a cell are not comparable."""

    def count(self, classes: int, keypoints: int) -> int:
        """Return the channels of the map for the given numbers of classes and keypoints."""
        return self.channels * {"map": 1, "class": classes, "keypoint": keypoints}[self.per]


def activate(maps: Mapping[str, Tensor], heads: Mapping[str, Head]) -> dict[str, Tensor]:
    """Apply the sigmoid to the heatmaps among raw ``maps``, float32 (N, C, H, W) by head."""
    return {
        name: torch.sigmoid(values) if heads[name].heatmap else values
        for name, values in maps.items()
    }


def average_with_flip(
    maps: Mapping[str, Tensor],
    flipped_maps: Mapping[str, Tensor],
    heads: Mapping[str, Head],
    keypoint_pairs: Sequence[tuple[int, int]],
) -> dict[str, Tensor]:
    """Average activated ``maps`` with those of the flipped images, both (N, C, H, W) by head.

    ``keypoint_pairs`` are the indices of left and right keypoints, which a flip swaps.
    """
    return {
        name: (values + unflip(flipped_maps[name], heads[name], keypoint_pairs)) / 2
        if heads[name].flipped
        else values
        for name, values in maps.items()
    }


def unflip(values: Tensor, head: Head, keypoint_pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Undo a horizontal flip in one map (N, C, H, W): columns, keypoint order, x offsets."""
    values = values.flip(3)
    if head.per != "keypoint":
        return values
    keypoints = values.shape[1] // head.channels
    order = list(range(keypoints))
    for left, right in keypoint_pairs:
        order[left], order[right] = right, left
    values = values.reshape(-1, keypoints, head.channels, *values.shape[2:])[:, order]
    if head.channels == 2:  # x and y offsets
        values = values * values.new_tensor((-1.0, 1.0)).reshape(1, 1, 2, 1, 1)
    return values.flatten(1, 2)
