"""What a prediction head means, as far as graphs must know."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """One dense map of a network."""

    channels: int
    per: Literal["map", "class", "keypoint"] = "map"
    """What ``channels`` counts for."""
    optional: bool = False
    """Whether the authors also train networks without it."""
    heatmap: bool = False
    """Whether its values are logits."""
    flipped: bool = True
    """Whether the flipped image's prediction is of use; offsets inside a cell are not comparable."""

    def count(self, classes: int, keypoints: int) -> int:
        """Channels of the map for so many classes and keypoints."""
        return self.channels * {"map": 1, "class": classes, "keypoint": keypoints}[self.per]


def activate(maps: Mapping[str, Tensor], heads: Mapping[str, Head]) -> dict[str, Tensor]:
    """Turn the logits among raw ``maps`` (N, C, H, W) into scores in [0, 1]; float32 all."""
    return {
        name: torch.sigmoid(values) if heads[name].heatmap else values
        for name, values in maps.items()
    }


def average_with_flip(
    maps: Mapping[str, Tensor],
    flip: Mapping[str, Tensor],
    heads: Mapping[str, Head],
    keypoint_pairs: Sequence[tuple[int, int]],
) -> dict[str, Tensor]:
    """Average activated ``maps`` with those of the flipped images, both (N, C, H, W) by head.

    ``keypoint_pairs`` are the keypoints that change places in a flip: left and right.
    """
    return {
        name: (values + unflip(flip[name], heads[name], keypoint_pairs)) / 2
        if heads[name].flipped
        else values
        for name, values in maps.items()
    }


def unflip(values: Tensor, head: Head, keypoint_pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Undo the flip in one map (N, C, H, W): columns, left and right keypoints, x offsets."""
    values = values.flip(3)
    if head.per != "keypoint":
        return values
    keypoints = values.shape[1] // head.channels
    order = list(range(keypoints))
    for left, right in keypoint_pairs:
        order[left], order[right] = right, left
    values = values.reshape(-1, keypoints, head.channels, *values.shape[2:])[:, order]
    if head.channels == 2:  # x and y of a way to go
        values = values * values.new_tensor((-1.0, 1.0)).reshape(1, 1, 2, 1, 1)
    return values.flatten(1, 2)
