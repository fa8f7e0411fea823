"""Upsampling to stride 4 by iterative deep aggregation (Yu et al. 2018, section 3.1).

*Objects as Points* uses two variants: ``plain``, as published with DLA, and ``deformable``, with
deformable convolutions and sums instead of plain convolutions and concatenations.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from model_export.networks.deformable import DeformableConvolution
from model_export.networks.dla import CHANNELS, convolution_block

_FINEST_LEVEL = 2  # stride 4


class Aggregation(nn.Module):
    """Upsamples coarser levels to the shape of the finest one and merges them into it in turn."""

    def __init__(
        self, out_channels: int, coarser_channels: Sequence[int], factors: Sequence[int]
    ) -> None:
        super().__init__()
        for index, (channels, factor) in enumerate(
            zip(coarser_channels, factors, strict=True), start=1
        ):
            self.add_module(f"project_{index}", self._projection(channels, out_channels))
            self.add_module(f"up_{index}", _upsampling(out_channels, factor))
            self.add_module(f"node_{index}", self._node(out_channels))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Merge ``levels``, finest first; returns the result of each merge, in order."""
        merged = levels[0]
        results = []
        for index, level in enumerate(levels[1:], start=1):
            level = self.get_submodule(f"project_{index}")(level)
            level = self.get_submodule(f"up_{index}")(level)
            merged = self.get_submodule(f"node_{index}")(self._merge(merged, level))
            results.append(merged)
        return results

    @staticmethod
    @abstractmethod
    def _projection(in_channels: int, out_channels: int) -> nn.Module: ...

    @staticmethod
    @abstractmethod
    def _node(channels: int) -> nn.Module: ...

    @staticmethod
    @abstractmethod
    def _merge(finer: Tensor, coarser: Tensor) -> Tensor: ...


def _upsampling(channels: int, factor: int) -> nn.ConvTranspose2d:
    """Depthwise transposed convolution that upsamples by ``factor``."""
    return nn.ConvTranspose2d(
        channels,
        channels,
        2 * factor,
        stride=factor,
        padding=factor // 2,
        groups=channels,
        bias=False,
    )


class PlainAggregation(Aggregation):
    """Projects by 1x1 convolutions and merges by 3x3 convolutions over both."""

    @staticmethod
    def _projection(in_channels: int, out_channels: int) -> nn.Module:
        return convolution_block(in_channels, out_channels, 1)

    @staticmethod
    def _node(channels: int) -> nn.Module:
        return convolution_block(2 * channels, channels, 3)

    @staticmethod
    def _merge(finer: Tensor, coarser: Tensor) -> Tensor:
        return torch.cat((finer, coarser), dim=1)


class DeformableBlock(nn.Module):
    """Deformable convolution, batch normalization, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = DeformableConvolution(in_channels, out_channels)
        self.activation = nn.Sequential(nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.activation(self.conv(x)))


class DeformableAggregation(Aggregation):
    """Projects by deformable convolutions, and merges by one over the sum."""

    @staticmethod
    def _projection(in_channels: int, out_channels: int) -> nn.Module:
        return DeformableBlock(in_channels, out_channels)

    @staticmethod
    def _node(channels: int) -> nn.Module:
        return DeformableBlock(channels, channels)

    @staticmethod
    def _merge(finer: Tensor, coarser: Tensor) -> Tensor:
        return finer + coarser


class DeepAggregation(nn.Module):
    """Merges DLA levels in steps, from the two coarsest to all, each at its finest stride."""

    def __init__(self, aggregation: type[Aggregation], channels: Sequence[int]) -> None:
        super().__init__()
        self.steps = len(channels) - 1
        for step in range(self.steps):
            finest = len(channels) - 2 - step
            # Earlier steps upsampled all coarser levels to the same stride and width.
            coarser = [channels[finest + 1]] * (step + 1)
            self.add_module(
                f"ida_{step}", aggregation(channels[finest], coarser, factors=[2] * (step + 1))
            )

    def aggregate(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Merge ``levels``, finest first; returns the last result of every step, finest first."""
        levels = list(levels)
        results: list[Tensor] = []
        for step in range(self.steps):
            finest = len(levels) - 2 - step
            merged = self.get_submodule(f"ida_{step}")(levels[finest:])
            levels[finest + 1 :] = merged
            results.insert(0, merged[-1])
        return results


class PlainNeck(DeepAggregation):
    """Merges the six levels of DLA-34 to one map (N, 64, H/4, W/4)."""

    out_channels = CHANNELS[_FINEST_LEVEL]

    def __init__(self) -> None:
        super().__init__(PlainAggregation, CHANNELS[_FINEST_LEVEL:])

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        return self.aggregate(levels[_FINEST_LEVEL:])[0]


class DeformableNeck(DeepAggregation):
    """Merges the six levels of DLA-34, and then the results of all steps, to (N, 64, H/4, W/4)."""

    out_channels = CHANNELS[_FINEST_LEVEL]

    def __init__(self) -> None:
        super().__init__(DeformableAggregation, CHANNELS[_FINEST_LEVEL:])
        finest, *coarser = CHANNELS[_FINEST_LEVEL:-1]
        self.final = DeformableAggregation(finest, coarser, factors=(2, 4))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        steps = self.aggregate(levels[_FINEST_LEVEL:])
        return cast(Tensor, self.final(steps)[-1])
