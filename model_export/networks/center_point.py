"""The center-point detector of *Objects as Points* (Zhou et al. 2019, section 3)."""

from collections.abc import Mapping

from torch import Tensor, nn


class PredictionHead(nn.Sequential):
    """3x3 convolution, ReLU, 1x1 convolution: one dense map per predicted quantity."""

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, hidden_channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden_channels, out_channels, 1),
        )


class CenterPointNetwork(nn.Module):
    """Backbone, neck and heads; float32 (N, 3, H, W) to one raw map (N, C, H/4, W/4) per head.

    The sigmoid of the heatmap is part of the loss and of the exported graph.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        neck_channels: int,
        head_channels: Mapping[str, int],
        head_hidden_channels: int,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.heads = nn.ModuleDict(
            {
                name: PredictionHead(neck_channels, head_hidden_channels, channels)
                for name, channels in head_channels.items()
            }
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.neck(self.backbone(images))
        return {name: head(features) for name, head in self.heads.items()}
