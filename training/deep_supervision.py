"""Intermediate supervision: networks that predict after every stack, and their checkpoint keys."""

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from typing import cast

from torch import Tensor, nn

from model_export.architectures import (
    Architecture,
    CornerArchitecture,
    HourglassArchitecture,
    TimmArchitecture,
)
from model_export.key_mappings.key_mapping import KeyMapping

Maps = dict[str, Tensor]


class _PassFeatures(nn.Module):
    """Replaces the backbone of a network whose input is features."""

    def forward(self, features: Tensor) -> list[Tensor]:
        return [features]


class StackedNetwork(nn.Module):
    """Stacked hourglasses with heads after each stack.

    Only the prediction of the last stack is exported; the others are for the loss (*Stacked
    Hourglass Networks*, Newell et al. 2016, section 3.2).
    """

    def __init__(self, network: nn.Module, stacks: int) -> None:
        """Take apart ``network``, which predicts from its last stack."""
        super().__init__()
        self.backbone = network.get_submodule("backbone")
        network.register_module("backbone", _PassFeatures())
        earlier = [copy.deepcopy(network) for _ in range(stacks - 1)]
        self.predictors = nn.ModuleList([*earlier, network])

    def forward(self, images: Tensor) -> Maps:
        """Return the maps of the last stack, as the exported network does."""
        return cast(Maps, self.predictors[-1](self.backbone(images)[-1]))

    def predict_all(self, images: Tensor) -> list[Maps]:
        """Return the maps of every stack, first to last."""
        pairs = zip(self.predictors, self.backbone(images), strict=True)
        return [predictor(features) for predictor, features in pairs]


def build_network(architecture: Architecture, head_channels: Mapping[str, int]) -> nn.Module:
    """Build a network for training; its ``forward`` returns the maps of the exported network."""
    network = architecture.build(head_channels)
    if isinstance(architecture, HourglassArchitecture | CornerArchitecture):
        return StackedNetwork(network, architecture.stacks)
    return network


def predict_all(network: nn.Module, images: Tensor) -> list[Maps]:
    """Return the raw maps of every stack; one element for networks without stacks."""
    if isinstance(network, StackedNetwork):
        return network.predict_all(images)
    return [network(images)]


def to_upstream_state_dict(network: nn.Module, architecture: Architecture) -> dict[str, Tensor]:
    """Return the weights under the names of the reference implementation."""
    state = network.state_dict()
    names = _upstream_names(network, architecture)
    return {names[key]: value.cpu().contiguous() for key, value in state.items()}


def load_upstream_state_dict(
    network: nn.Module, architecture: Architecture, state: Mapping[str, Tensor]
) -> None:
    """Load the result of :func:`to_upstream_state_dict`.

    Raises ``RuntimeError`` for weights of another network.
    """
    local = {upstream: key for key, upstream in _upstream_names(network, architecture).items()}
    network.load_state_dict({local.get(key, key): value for key, value in state.items()})


def load_pretrained(
    network: nn.Module, architecture: Architecture, state: Mapping[str, Tensor]
) -> list[str]:
    """Load the weights of a checkpoint, except for heads of other classes or another task.

    The checkpoint may also be that of a backbone alone, such as an ImageNet classifier. Returns
    the checkpoint names of the weights that are not loaded. Raises :class:`ValueError` if a weight
    outside of the heads is missing or has another shape.
    """
    local = network.state_dict()
    names = _upstream_names(network, architecture)
    if isinstance(architecture, TimmArchitecture):
        state = _with_prefix_of_backbone(state, names.values())
    has_neck = any(upstream in state for key, upstream in names.items() if key.startswith("neck."))
    optional = (".heads.",) if has_neck else (".heads.", ".neck.")
    loaded, skipped = {}, []
    for key, upstream in names.items():
        if upstream in state and state[upstream].shape == local[key].shape:
            loaded[key] = state[upstream]
        elif not key.endswith("num_batches_tracked"):  # missing in files of old torch versions
            skipped.append(upstream)
            if not any(part in f".{key}" for part in optional):
                found = tuple(state[upstream].shape) if upstream in state else "missing"
                raise ValueError(f"{upstream} is {found}; these are weights of another network")
    network.load_state_dict(loaded, strict=False)
    return skipped


def _with_prefix_of_backbone(
    state: Mapping[str, Tensor], names: Iterable[str]
) -> Mapping[str, Tensor]:
    """Return the weights of a timm classifier under the names of the backbone in ``names``.

    timm names the stages of a feature extractor ``stages_0`` instead of ``stages.0``.
    """
    if any(name in state for name in names):
        return state
    backbone = {
        name.removeprefix("backbone.").replace(".", "_"): name
        for name in names
        if name.startswith("backbone.")
    }
    return {backbone.get(key.replace(".", "_"), key): value for key, value in state.items()}


def _upstream_names(network: nn.Module, architecture: Architecture) -> dict[str, str]:
    return {
        key: _stack_layout(architecture, stack).to_checkpoint_key(rest)
        for key in network.state_dict()
        for stack, rest in [_split(key)]
    }


def _split(key: str) -> tuple[int | None, str]:
    """Split a key into the stack whose heads it belongs to, if any, and the name in the network."""
    if not key.startswith("predictors."):
        return None, key
    _, stack, rest = key.split(".", maxsplit=2)
    return int(stack), rest


def _stack_layout(architecture: Architecture, stack: int | None) -> KeyMapping:
    """Return the key mapping of a network that ends with ``stack``; it names the last heads."""
    if stack is None or not isinstance(architecture, HourglassArchitecture | CornerArchitecture):
        return architecture.key_mapping
    return dataclasses.replace(architecture, stacks=stack + 1).key_mapping
