"""Networks as they are trained: a prediction after every stack, in the upstream checkpoints too."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from model_export.architectures import Architecture, CornerArchitecture, HourglassArchitecture
from model_export.key_mappings.key_mapping import KeyMapping

Maps = dict[str, Tensor]


class _FeaturesGiven(nn.Module):
    """Stands where a network has its backbone, when the features have been made already."""

    def forward(self, features: Tensor) -> list[Tensor]:
        return [features]


class StackedNetwork(nn.Module):
    """Stacked hourglasses, with what predicts from each of them.

    Only the last stack's prediction is exported; the others are there for the loss (*Stacked
    Hourglass Networks*, Newell et al. 2016, section 3.2).
    """

    def __init__(self, network: nn.Module, stacks: int) -> None:
        """``network`` is one that predicts from its last stack; it is taken apart."""
        super().__init__()
        self.backbone = network.get_submodule("backbone")
        network.register_module("backbone", _FeaturesGiven())
        earlier = [copy.deepcopy(network) for _ in range(stacks - 1)]
        self.predictors = nn.ModuleList([*earlier, network])

    def forward(self, images: Tensor) -> Maps:
        """Maps of the last stack: what the exported network returns."""
        return cast(Maps, self.predictors[-1](self.backbone(images)[-1]))

    def predict_all(self, images: Tensor) -> list[Maps]:
        """Maps of every stack, first to last."""
        pairs = zip(self.predictors, self.backbone(images), strict=True)
        return [predictor(features) for predictor, features in pairs]


def build_network(architecture: Architecture, head_channels: Mapping[str, int]) -> nn.Module:
    """Make a network for training; it returns what the exported one returns."""
    network = architecture.build(head_channels)
    if isinstance(architecture, HourglassArchitecture | CornerArchitecture):
        return StackedNetwork(network, architecture.stacks)
    return network


def predict_all(network: nn.Module, images: Tensor) -> list[Maps]:
    """Raw maps of every stack; of networks without stacks the only ones."""
    if isinstance(network, StackedNetwork):
        return network.predict_all(images)
    return [network(images)]


def to_upstream_state_dict(network: nn.Module, architecture: Architecture) -> dict[str, Tensor]:
    """The weights under the names that ``centernet-export`` reads."""
    state = network.state_dict()
    names = _upstream_names(network, architecture)
    return {names[key]: value.cpu().contiguous() for key, value in state.items()}


def load_upstream_state_dict(
    network: nn.Module, architecture: Architecture, state: Mapping[str, Tensor]
) -> None:
    """Undo :func:`to_upstream_state_dict`; raises ``RuntimeError`` for weights of another network."""
    local = {upstream: key for key, upstream in _upstream_names(network, architecture).items()}
    network.load_state_dict({local.get(key, key): value for key, value in state.items()})


def load_pretrained(
    network: nn.Module, architecture: Architecture, state: Mapping[str, Tensor]
) -> list[str]:
    """Take over what fits of a checkpoint, for a network that is to learn something else.

    Heads for other classes or another task stay as they are; returns the names of their weights in
    the checkpoint. Raises :class:`ValueError` where anything but a head does not fit.
    """
    local = network.state_dict()
    taken, left = {}, []
    for key, upstream in _upstream_names(network, architecture).items():
        if upstream in state and state[upstream].shape == local[key].shape:
            taken[key] = state[upstream]
        elif not key.endswith("num_batches_tracked"):  # old files have no such counts
            left.append(upstream)
            if ".heads." not in f".{key}":
                found = tuple(state[upstream].shape) if upstream in state else "missing"
                raise ValueError(f"{upstream} is {found}; these are weights of another network")
    network.load_state_dict(taken, strict=False)
    return left


def _upstream_names(network: nn.Module, architecture: Architecture) -> dict[str, str]:
    return {
        key: _stack_layout(architecture, stack).to_checkpoint_key(rest)
        for key in network.state_dict()
        for stack, rest in [_split(key)]
    }


def _split(key: str) -> tuple[int | None, str]:
    """The stack that predicts with a weight, if one does, and the weight's name in the network."""
    if not key.startswith("predictors."):
        return None, key
    _, stack, rest = key.split(".", maxsplit=2)
    return int(stack), rest


def _stack_layout(architecture: Architecture, stack: int | None) -> KeyMapping:
    """Names in which ``stack`` is the last; what is before it, a layout does not name."""
    if stack is None or not isinstance(architecture, HourglassArchitecture | CornerArchitecture):
        return architecture.key_mapping
    return dataclasses.replace(architecture, stacks=stack + 1).key_mapping
