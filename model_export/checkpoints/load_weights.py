"""Weights into a network, all or nothing: no tensor is left out and none keeps its random start.

The upstream loader skips what does not fit, which shows later as boxes in the wrong place.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from model_export.architectures import ARCHITECTURES
from model_export.checkpoints.identify import CheckpointInfo


def load_network(contents: CheckpointInfo, state: Mapping[str, Tensor]) -> nn.Module:
    """Build the network that ``state`` was found to hold and give it the weights; for inference.

    ``contents`` is what :func:`~model_export.checkpoints.identify.identify` says of ``state``,
    which has the upstream names, as :func:`~model_export.checkpoints.safe_load.read_state` returns
    them.
    """
    architecture = ARCHITECTURES[contents.architecture]
    network = architecture.build(contents.head_channels, contents.head_hidden_channels)
    complete = network.state_dict()  # for the counters, which read_state leaves out
    unused = set(contents.unused)
    complete.update(
        {
            architecture.layout.to_network_key(key): weight
            for key, weight in state.items()
            if key not in unused
        }
    )
    network.load_state_dict(complete)
    return network.eval()
