"""Helpers for the checkpoints of tests."""

from pathlib import Path

import torch
from torch import Tensor, nn

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


class UpstreamNames(nn.Module):
    """A network whose parameters and buffers have the names of the upstream code."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._networks = [network]  # in a list, so that its own names are not registered
        for name, weight in network.state_dict(keep_vars=True).items():
            *parts, last = to_checkpoint_key(name).split(".")
            module: nn.Module = self
            for part in parts:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            if isinstance(weight, nn.Parameter):
                module.register_parameter(last, weight)
            else:
                module.register_buffer(last, weight)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self._networks[0](images)
