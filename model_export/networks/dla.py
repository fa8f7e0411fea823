"""Deep layer aggregation (Yu et al. 2018): the DLA-34 backbone."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

CHANNELS = (16, 32, 64, 128, 256, 512)
"""Channels of the backbone's six levels; level i has stride 2**i."""


def convolution_block(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1
) -> nn.Sequential:
    """Convolution that keeps the size (divided by ``stride``), batch normalization, ReLU."""
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class TreeBlock(nn.Module):
    """Two 3x3 convolutions; the enclosing tree supplies the shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return cast(Tensor, self.relu(x + shortcut))


class Root(nn.Module):
    """Aggregation node: 1x1 convolution over the concatenated children."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, children: Sequence[Tensor]) -> Tensor:
        return cast(Tensor, self.relu(self.bn(self.conv(torch.cat(tuple(children), dim=1)))))


def _pooling(stride: int) -> nn.Module:
    return nn.MaxPool2d(stride, stride=stride) if stride > 1 else nn.Identity()


class Tree(nn.Module):
    """Two blocks and a root; (N, in, H, W) to (N, out, H/stride, W/stride).

    The root also takes ``extra_channels`` from the enclosing tree and, with ``keeps_input``, the
    pooled input.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        extra_channels: int = 0,
        keeps_input: bool = False,
    ) -> None:
        super().__init__()
        self.keeps_input = keeps_input
        self.pool = _pooling(stride)
        self.project: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.project = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
            )
        self.tree1 = TreeBlock(in_channels, out_channels, stride)
        self.tree2 = TreeBlock(out_channels, out_channels, 1)
        kept_channels = in_channels if keeps_input else 0
        self.root = Root(2 * out_channels + kept_channels + extra_channels, out_channels)

    def forward(self, x: Tensor, extra: Sequence[Tensor] = ()) -> Tensor:
        pooled = self.pool(x)
        first = self.tree1(x, self.project(pooled))
        second = self.tree2(first, first)
        kept = [pooled] if self.keeps_input else []
        return cast(Tensor, self.root([second, first, *kept, *extra]))


class DeepTree(nn.Module):
    """Two nested trees; the root of the second also takes the pooled input and the first tree."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.pool = _pooling(stride)
        self.tree1 = Tree(in_channels, out_channels, stride)
        self.tree2 = Tree(out_channels, out_channels, 1, extra_channels=in_channels + out_channels)

    def forward(self, x: Tensor) -> Tensor:
        first = self.tree1(x)
        return cast(Tensor, self.tree2(first, [self.pool(x), first]))


class DLABackbone(nn.Module):
    """DLA-34; float32 (N, 3, H, W) to its six levels, level i (N, CHANNELS[i], H/2**i, W/2**i)."""

    def __init__(self) -> None:
        super().__init__()
        widths = CHANNELS
        self.stem = convolution_block(3, widths[0], 7)
        self.level0 = convolution_block(widths[0], widths[0], 3)
        self.level1 = convolution_block(widths[0], widths[1], 3, stride=2)
        self.level2 = Tree(widths[1], widths[2], stride=2)
        self.level3 = DeepTree(widths[2], widths[3], stride=2)
        self.level4 = DeepTree(widths[3], widths[4], stride=2)
        self.level5 = Tree(widths[4], widths[5], stride=2, keeps_input=True)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.stem(images)
        levels = []
        for level in (
            self.level0, self.level1, self.level2, self.level3, self.level4, self.level5,
        ):  # fmt: skip
            x = level(x)
            levels.append(x)
        return levels
