"""Strict loading of checkpoint weights into a network.

Every network parameter must be in the checkpoint and every needed tensor of the checkpoint must be
used. The upstream loader skips tensors that do not fit, which later shows as misplaced boxes.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from model_export.checkpoints.identify import CheckpointInfo


def load_network(checkpoint_info: CheckpointInfo, state: Mapping[str, Tensor]) -> nn.Module:
    """Build the network that ``checkpoint_info`` describes and load ``state``; returns eval mode.

    ``checkpoint_info`` is the result of :func:`~model_export.checkpoints.identify.identify` for
    ``state``, which has upstream keys, as from
    :func:`~model_export.checkpoints.safe_load.read_state`.
    """
    architecture = checkpoint_info.variant
    network = architecture.build(
        checkpoint_info.head_channels, checkpoint_info.head_hidden_channels
    )
    complete = network.state_dict()  # supplies the num_batches_tracked that read_state drops
    unused = set(checkpoint_info.unused)
    complete.update(
        {
            architecture.key_mapping.to_network_key(key): weight
            for key, weight in state.items()
            if key not in unused
        }
    )
    network.load_state_dict(complete)
    return network.eval()
