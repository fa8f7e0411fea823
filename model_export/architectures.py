"""The architectures that can be exported, as data: one literal table."""

from collections.abc import Mapping
from dataclasses import dataclass

from model_export.networks.center_point import CenterPointNetwork
from model_export.networks.resnet import BasicBlock, Bottleneck, DeconvolutionNeck, ResNetTrunk

OUTPUT_STRIDE = 4
"""Input pixels per cell of the output maps (*Objects as Points*, section 3: R = 4)."""

INPUT_MULTIPLE = 32
"""Height and width of the input must be multiples of the trunk's total stride."""


@dataclass(frozen=True)
class ResNetArchitecture:
    """A plain ResNet back end with three transposed convolutions."""

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    neck_channels: tuple[int, int, int] = (256, 256, 256)
    head_hidden_channels: int = 64

    def build(self, head_channels: Mapping[str, int]) -> CenterPointNetwork:
        """Make the network with freshly initialised weights.

        ``head_channels`` gives the channels of each head: ``heatmap`` (number of classes),
        ``size`` (2) and ``offset`` (2).
        """
        trunk = ResNetTrunk(self.block, self.depths, self.widths)
        neck = DeconvolutionNeck(trunk.out_channels, self.neck_channels)
        return CenterPointNetwork(
            trunk, neck, neck.out_channels, head_channels, self.head_hidden_channels
        )


ARCHITECTURES: Mapping[str, ResNetArchitecture] = {
    "res_18": ResNetArchitecture(BasicBlock, (2, 2, 2, 2)),
    "res_34": ResNetArchitecture(BasicBlock, (3, 4, 6, 3)),
    "res_50": ResNetArchitecture(Bottleneck, (3, 4, 6, 3)),
    "res_101": ResNetArchitecture(Bottleneck, (3, 4, 23, 3)),
    # Ours, for CPUs: the same layout as res_18 with a tenth of its parameters and arithmetic.
    "res_18_slim": ResNetArchitecture(
        BasicBlock,
        (2, 2, 2, 2),
        widths=(32, 64, 96, 128),
        neck_channels=(64, 64, 64),
        head_hidden_channels=32,
    ),
}


def box_head_channels(num_classes: int) -> dict[str, int]:
    """Heads of the 2D detector and their channels."""
    return {"heatmap": num_classes, "size": 2, "offset": 2}
