"""Layers of *CornerNet-Squeeze* (*CornerNet-Lite*, Law et al. 2019, section 3.2)."""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_export.networks.hourglass import HourglassLayers

OUTPUT_STRIDE: Final = 8
"""Input pixels per cell: the stem halves the resolution three times."""

WIDTHS = (256, 256, 384, 384, 512)
"""Channels at each level; one level fewer than in *CornerNet*."""

DEPTHS = (2, 2, 2, 2, 4)
"""Fire modules at each level."""


class Concatenation(nn.Module):
    """Concatenates two maps along the channels."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat((first, second), dim=1)


class FireModule(nn.Module):
    """Fire module of SqueezeNet with a depthwise 3x3 convolution; replaces a residual block.

    A 1x1 convolution to half of ``out_channels``, then a 1x1 and a depthwise 3x3 convolution side
    by side. There is no activation between them, and a shortcut only where the shape is kept.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv1 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv_1x1 = nn.Conv2d(half, half, 1, stride=stride, bias=False)
        self.conv_3x3 = nn.Conv2d(half, half, 3, stride, padding=1, groups=half, bias=False)
        self.concatenate = Concatenation()
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.bn1(self.conv1(x))
        expanded = self.bn2(self.concatenate(self.conv_1x1(squeezed), self.conv_3x3(squeezed)))
        return functional.relu(expanded + x if self.has_shortcut else expanded)


def _transposed_convolution(channels: int) -> nn.Module:
    return nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)


LAYERS = HourglassLayers(FireModule, _transposed_convolution, stem_blocks=2)
