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
    per: Literal["map", "class", "joint"] = "map"
    """What ``channels`` counts for."""
    optional: bool = False
    """Whether the authors also train networks without it."""
    heatmap: bool = False
    """Whether its values are logits."""
    mirrored: bool = True
    """Whether the mirror image's prediction is of use; offsets inside a cell are not comparable."""

    def count(self, classes: int, joints: int) -> int:
        """Channels of the map for so many classes and joints."""
        return self.channels * {"map": 1, "class": classes, "joint": joints}[self.per]


def activate(maps: Mapping[str, Tensor], heads: Mapping[str, Head]) -> dict[str, Tensor]:
    """Turn the logits among raw ``maps`` (N, C, H, W) into scores in [0, 1]; float32 all."""
    return {
        name: torch.sigmoid(values) if heads[name].heatmap else values
        for name, values in maps.items()
    }


def average_with_mirror(
    maps: Mapping[str, Tensor],
    mirror: Mapping[str, Tensor],
    heads: Mapping[str, Head],
    joint_pairs: Sequence[tuple[int, int]],
) -> dict[str, Tensor]:
    """Average activated ``maps`` with those of the mirrored images, both (N, C, H, W) by head.

    ``joint_pairs`` are the joints that change places in a mirror: left and right.
    """
    return {
        name: (values + unmirror(mirror[name], heads[name], joint_pairs)) / 2
        if heads[name].mirrored
        else values
        for name, values in maps.items()
    }


def unmirror(values: Tensor, head: Head, joint_pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Undo the mirror in one map (N, C, H, W): columns, left and right joints, x offsets."""
    values = values.flip(3)
    if head.per != "joint":
        return values
    joints = values.shape[1] // head.channels
    order = list(range(joints))
    for left, right in joint_pairs:
        order[left], order[right] = right, left
    values = values.reshape(-1, joints, head.channels, *values.shape[2:])[:, order]
    if head.channels == 2:  # x and y of a way to go
        values = values * values.new_tensor((-1.0, 1.0)).reshape(1, 1, 2, 1, 1)
    return values.flatten(1, 2)
