"""The corner systems as architectures, for the table of all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from model_export.checkpoints import corner_nets
from model_export.checkpoints.key_mapping import KeyMapping
from model_export.networks import hourglass
from model_export.networks.corner_networks import KeypointNetwork


@dataclass(frozen=True)
class CornerArchitecture:
    """Stacked hourglasses with one pooling block per kind of keypoint."""

    stacks: int
    """Two hourglasses have 104 layers, one has 52."""
    pooling: Callable[[int], Mapping[str, nn.Module]]
    tasks: tuple[str, ...]
    widths: Sequence[int] = hourglass.WIDTHS
    depths: Sequence[int] = hourglass.DEPTHS
    input_multiple: Literal[128] = hourglass.INPUT_MULTIPLE

    @property
    def head_hidden_channels(self) -> int:
        """As many as a stack has."""
        return self.widths[0]

    @property
    def layout(self) -> KeyMapping:
        """The upstream names."""
        return corner_nets.layout(self.stacks)

    def build(
        self, head_channels: Mapping[str, int], head_hidden_channels: int | None = None
    ) -> KeypointNetwork:
        """Make the network with freshly initialised weights; channels per head, by our names."""
        return KeypointNetwork(
            hourglass.StackedHourglass(self.stacks, self.widths, self.depths),
            self.pooling(self.widths[0]),
            self.widths[0],
            head_channels,
            head_hidden_channels or self.head_hidden_channels,
        )
