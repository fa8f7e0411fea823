"""Residual backbone (He et al. 2016, *Deep Residual Learning*) and the transposed-convolution neck.

*Objects as Points* takes the neck from *Simple Baselines for Human Pose Estimation*
(Xiao et al. 2018): three 4x4 stride-2 transposed convolutions, from stride 32 to stride 4.
"""

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor, nn

STEM_CHANNELS = 64


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without a bias that keeps the size, divided by ``stride``."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """Return a projection of the residual input, or None if input and output shapes are equal."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and -34)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return cast(Tensor, self.relu(x + shortcut))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut (ResNet-50 and deeper).

    The stride is on the 3x3 convolution, as in the pretrained checkpoints that upstream uses.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return cast(Tensor, self.relu(x + shortcut))


class ResNetBackbone(nn.Module):
    """Stem and four stages; float32 (N, 3, H, W) to (N, out_channels, H/32, W/32)."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
    ) -> None:
        super().__init__()
        stem_channels = min(STEM_CHANNELS, widths[0])
        self.conv1 = nn.Conv2d(3, stem_channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = stem_channels
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(block(channels, width, stride))
                channels = width * block.expansion
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.stage_names = [f"layer{stage}" for stage in range(1, len(depths) + 1)]
        self.out_channels = channels

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))  # stride 2
        x = self.maxpool(x)  # stride 4
        for name in self.stage_names:
            x = self.get_submodule(name)(x)  # strides 4, 8, 16, 32
        return x


class DeconvolutionNeck(nn.Sequential):
    """Transposed convolutions that double height and width once per entry of ``channels``.

    ``convolution`` makes a 3x3 convolution from its numbers of input and output channels, which
    precedes each of them; with deformable convolutions it is the neck of resdcn (*Objects as
    Points*, section 5).
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        convolution: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        layers: list[nn.Module] = []
        for out_channels in channels:
            if convolution is not None:
                layers += [
                    convolution(in_channels, out_channels),
                    nn.BatchNorm2d(out_channels),
                    nn.ReLU(inplace=True),
                ]
                in_channels = out_channels
            layers += [
                nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
            ]
            in_channels = out_channels
        super().__init__(*layers)
        self.out_channels = in_channels
