"""Stacked hourglasses (Newell et al. 2016) in the variant of *CornerNet* (2018, section 3.5).

Two stacks are Hourglass-104, the backbone of *Objects as Points* (section 5) and of *CornerNet*;
one is the Hourglass-52 of *Keypoint Triplets*. Unlike in Newell et al., strided residual blocks
instead of pooling halve the resolution, and the upsampled branch is added to the skip branch.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, cast

from torch import Tensor, nn
from torch.nn import functional

INPUT_MULTIPLE: Final = 128
"""Stride of the innermost level, so that halving and doubling preserve the size."""

WIDTHS = (256, 256, 384, 384, 384, 512)
"""Channels at each level; the first is the width of every stack's feature map."""

DEPTHS = (2, 2, 2, 2, 2, 4)
"""Residual blocks at each level."""


class ConvolutionBlock(nn.Module):
    """Convolution that keeps the size (divided by ``stride``), batch normalization, ReLU.

    Without normalization the convolution has a bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=(kernel - 1) // 2,
            bias=not normalize,
        )
        self.bn = nn.BatchNorm2d(out_channels) if normalize else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.relu(self.bn(self.conv(x))))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return cast(Tensor, self.relu(residual + self.shortcut(x)))


def projection(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """1x1 convolution and batch normalization, without an activation."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def _nearest(_channels: int) -> nn.Module:
    return nn.Upsample(scale_factor=2.0, mode="nearest")


@dataclass(frozen=True)
class HourglassLayers:
    """Layers of a stacked hourglass."""

    block: Callable[[int, int, int], nn.Module] = ResidualBlock
    """Takes input channels, output channels and stride."""
    upsampling: Callable[[int], nn.Module] = _nearest
    """Doubles height and width of a map with this number of channels."""
    stem_blocks: int = 1
    """Strided residual blocks of the stem, after its strided convolution."""

    def chain(self, channels: Sequence[int], first_stride: int = 1) -> nn.Sequential:
        """Chain blocks with these channels: one block fewer than entries."""
        strides = [first_stride] + [1] * (len(channels) - 2)
        shapes = zip(channels[:-1], channels[1:], strides, strict=True)
        return nn.Sequential(*(self.block(*shape) for shape in shapes))


RESIDUAL_LAYERS = HourglassLayers()
"""Layers of *CornerNet*."""


class Hourglass(nn.Module):
    """One level and, recursively, all smaller ones; (N, widths[0], H, W) to the same shape.

    ``across`` keeps the resolution; ``down``, ``inner`` and ``up`` work at half of it.
    """

    def __init__(
        self, widths: Sequence[int], depths: Sequence[int], layers: HourglassLayers
    ) -> None:
        super().__init__()
        width, inner_width = widths[:2]
        depth, inner_depth = depths[:2]
        self.across = layers.chain([width] * (depth + 1))
        self.down = layers.chain([width] + [inner_width] * depth, first_stride=2)
        self.inner: nn.Module = (
            Hourglass(widths[1:], depths[1:], layers)
            if len(widths) > 2
            else layers.chain([inner_width] * (inner_depth + 1))
        )
        self.up = layers.chain([inner_width] * depth + [width])
        self.upsampling = layers.upsampling(width)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.up(self.inner(self.down(x)))  # (N, width, H/2, W/2)
        return cast(Tensor, self.across(x) + self.upsampling(inner))


class StackedHourglass(nn.Module):
    """Stem and ``stacks`` hourglasses, each refining the features of the previous one.

    Takes float32 (N, 3, H, W) whose sides are multiples of 128, or multiples minus 1. Returns the
    feature map of every stack in order, float32 (N, widths[0], H/4, W/4) each with one block in the
    stem; the last one is used for predictions, the others only for the training loss.
    """

    def __init__(
        self,
        stacks: int,
        widths: Sequence[int] = WIDTHS,
        depths: Sequence[int] = DEPTHS,
        layers: HourglassLayers = RESIDUAL_LAYERS,
    ) -> None:
        super().__init__()
        width = widths[0]
        stem = [width // 2] + [width] * layers.stem_blocks
        self.stem = nn.Sequential(
            ConvolutionBlock(3, width // 2, kernel=7, stride=2),
            *(ResidualBlock(*channels, stride=2) for channels in itertools.pairwise(stem)),
        )
        self.hourglasses = nn.ModuleList(Hourglass(widths, depths, layers) for _ in range(stacks))
        self.outputs = nn.ModuleList(ConvolutionBlock(width, width) for _ in range(stacks))
        between = range(stacks - 1)
        self.merge_inputs = nn.ModuleList(projection(width, width) for _ in between)
        self.merge_outputs = nn.ModuleList(projection(width, width) for _ in between)
        self.merged = nn.ModuleList(ResidualBlock(width, width) for _ in between)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.stem(images)
        features = [self.outputs[0](self.hourglasses[0](x))]
        for stack, merged in enumerate(self.merged, start=1):
            x = self.merge_inputs[stack - 1](x) + self.merge_outputs[stack - 1](features[-1])
            x = merged(functional.relu(x))
            features.append(self.outputs[stack](self.hourglasses[stack](x)))
        return features


class LastStack(nn.Module):
    """Selects the last stack's feature map."""

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return features[-1]
