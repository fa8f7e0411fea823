"""The center-point detector of *Objects as Points* (Zhou et al. 2019, section 3)."""

from collections.abc import Mapping

from torch import Tensor, nn


class PredictionHead(nn.Sequential):
    """Convolution, ReLU, 1x1 convolution: one dense map per predicted quantity.

    ``kernel`` is the odd side of the first convolution.
    """

    def __init__(
        self, in_channels: int, hidden_channels: int, out_channels: int, kernel: int = 3
    ) -> None:
        super().__init__(
            nn.Conv2d(in_channels, hidden_channels, kernel, padding=kernel // 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden_channels, out_channels, 1),
        )


def prediction_head(in_channels: int, hidden_channels: int, out_channels: int) -> nn.Module:
    """Return a :class:`PredictionHead`, or a single 1x1 convolution for no hidden channels."""
    if hidden_channels == 0:
        return nn.Conv2d(in_channels, out_channels, 1)
    return PredictionHead(in_channels, hidden_channels, out_channels)


class CenterPointNetwork(nn.Module):
    """Backbone, neck and heads; float32 (N, 3, H, W) to one raw map (N, C, H/R, W/R) per head.

    The output stride R is that of the neck. ``head_hidden_channels``, by head: 0 for heads of a
    single 1x1 convolution. The sigmoid of the heatmap is part of the loss and of the exported
    graph.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        neck_channels: int,
        head_channels: Mapping[str, int],
        head_hidden_channels: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.heads = nn.ModuleDict(
            {
                name: prediction_head(neck_channels, head_hidden_channels[name], channels)
                for name, channels in head_channels.items()
            }
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.neck(self.backbone(images))
        return {name: head(features) for name, head in self.heads.items()}
