"""Prediction modules of *CornerNet* and *Keypoint Triplets*: corner and center pooling blocks."""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from model_export.networks.corner_pooling import PoolPair
from model_export.networks.hourglass import ConvolutionBlock, projection


class PoolingBlock(nn.Module):
    """Two branches, pooled vertically and horizontally, inside a residual block.

    With corner pooling this is the prediction module of *CornerNet* (section 3.3), with the maxima
    of whole columns and rows the center pooling of *Keypoint Triplets* (section 3.3).
    float32 (N, channels, H, W) to the same shape.
    """

    def __init__(self, channels: int, pools: PoolPair, pooled_channels: int = 128) -> None:
        super().__init__()
        self.pools = pools
        self.vertical_branch = ConvolutionBlock(channels, pooled_channels)
        self.horizontal_branch = ConvolutionBlock(channels, pooled_channels)
        self.merge = nn.Sequential(
            nn.Conv2d(pooled_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = projection(channels, channels)
        self.output = ConvolutionBlock(channels, channels)

    def pool(self, x: Tensor) -> Tensor:
        """Return the sum of both pooled branches, (N, pooled_channels, H, W)."""
        return self.pools.sum(self.vertical_branch(x), self.horizontal_branch(x))

    def forward(self, x: Tensor) -> Tensor:
        merged = functional.relu(self.merge(self.pool(x)) + self.shortcut(x))
        return cast(Tensor, self.output(merged))


class CascadePoolingBlock(PoolingBlock):
    """Cascade corner pooling (*Keypoint Triplets*, section 3.4).

    Before a branch is pooled along the border, features pooled in the other direction, into the
    object, are added to it, so that a corner also depends on the interior of the object.
    """

    def __init__(self, channels: int, pools: PoolPair, pooled_channels: int = 128) -> None:
        super().__init__(channels, pools, pooled_channels)
        self.vertical_look = ConvolutionBlock(channels, pooled_channels)
        self.horizontal_look = ConvolutionBlock(channels, pooled_channels)
        self.vertical_join = _bare_convolution(pooled_channels)
        self.horizontal_join = _bare_convolution(pooled_channels)

    def pool(self, x: Tensor) -> Tensor:
        """Return the sum of both branches, pooled twice, (N, pooled_channels, H, W)."""
        inside = self.pools.horizontal(self.vertical_look(x))
        vertical = self.vertical_join(self.vertical_branch(x) + inside)
        inside = self.pools.vertical(self.horizontal_look(x))
        horizontal = self.horizontal_join(self.horizontal_branch(x) + inside)
        return self.pools.sum(vertical, horizontal)


def _bare_convolution(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1, bias=False)
