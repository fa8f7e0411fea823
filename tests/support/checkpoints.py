"""Helpers for the checkpoints of tests."""

from pathlib import Path

import torch
from torch import Tensor

from model_export.architectures import ARCHITECTURES, box_head_channels
from model_export.key_mappings.objects_as_points import to_checkpoint_key

State = dict[str, Tensor]


def without_counters(state: State) -> State:
    """Remove the ``num_batches_tracked`` buffers, as ``read_state`` does."""
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def save_slim_checkpoint(path: Path, classes: int) -> None:
    """Save an untrained ``res_18_slim`` with the names of *Objects as Points*."""
    torch.manual_seed(1)
    network = ARCHITECTURES["res_18_slim"].build(box_head_channels(classes))
    state = {to_checkpoint_key(key): weight for key, weight in network.state_dict().items()}
    torch.save(state, path)
