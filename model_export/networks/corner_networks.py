"""The network of *CornerNet*, *CornerNet-Squeeze* and *Keypoint Triplets*.

Papers: Law and Deng 2018, *CornerNet-Lite* (Law et al. 2019), Duan et al. 2019.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from model_export.networks.center_point import PredictionHead
from model_export.networks.corner_blocks import CascadePoolingBlock, PoolingBlock
from model_export.networks.corner_pooling import BOTTOM_RIGHT, CENTER, TOP_LEFT
from model_export.networks.hourglass import StackedHourglass


class KeypointNetwork(nn.Module):
    """Backbone, a pooling block per kind of keypoint, and heads on each block.

    float32 (N, 3, H, W) to one raw map per head, (N, C, H/4, W/4), rounded up, or with the stride
    of another ``backbone``; sides must be multiples of 128, or multiples minus 1. Heads are named
    ``<keypoint>_<quantity>``, such as ``top_left_heatmap``. In training every stack of the backbone
    has blocks and heads; this network has those of the last stack.
    """

    def __init__(
        self,
        backbone: StackedHourglass,
        pooling: Mapping[str, nn.Module],
        channels: int,
        head_channels: Mapping[str, int],
        head_hidden_channels: Mapping[str, int],
        head_kernel: int = 3,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = nn.ModuleDict(pooling)
        self.heads = nn.ModuleDict(
            {
                name: PredictionHead(channels, head_hidden_channels[name], count, head_kernel)
                for name, count in head_channels.items()
            }
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.backbone(images)[-1]  # (N, channels, H/4, W/4), or with another stride
        pooled = {keypoint: block(features) for keypoint, block in self.pooling.items()}
        return {name: head(pooled[_keypoint(name)]) for name, head in self.heads.items()}


def corner_net_pooling(channels: int) -> dict[str, nn.Module]:
    """Return the pooling blocks of *CornerNet*, by keypoint."""
    return {
        "top_left": PoolingBlock(channels, TOP_LEFT, channels // 2),
        "bottom_right": PoolingBlock(channels, BOTTOM_RIGHT, channels // 2),
    }


def keypoint_triplets_pooling(channels: int) -> dict[str, nn.Module]:
    """Return the pooling blocks of *Keypoint Triplets*, by keypoint."""
    return {
        "top_left": CascadePoolingBlock(channels, TOP_LEFT, channels // 2),
        "bottom_right": CascadePoolingBlock(channels, BOTTOM_RIGHT, channels // 2),
        "center": PoolingBlock(channels, CENTER, channels // 2),
    }


def _keypoint(head: str) -> str:
    return head.rpartition("_")[0]
