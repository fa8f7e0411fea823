"""The network's body in half precision; everything before and after it stays float32.

float16 has 11 significant bits and ends at 65504. Normalisation layers are folded into their
convolutions first, in float64, so that every weight is rounded once.
"""

from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor, nn

from model_export.errors import HalfPrecisionError
from model_export.networks.center_point import PredictionHead
from model_export.networks.deformable import DeformableConvolution

_LARGEST = torch.finfo(torch.float16).max
_EXAMPLE_PX = 128
"""Side of an input that suits every network."""

Convolution = nn.Conv2d | nn.ConvTranspose2d | DeformableConvolution


class HalfNetwork(nn.Module):
    """A network whose layers compute in half; float32 (N, 3, H, W) to float32 maps by head.

    Takes over ``network``, whose weights are changed: two copies of a large one would need twice
    the memory. Two kinds of layers stay in float32. Deformable convolutions, since half cannot
    tell places between the cells of a wide map apart; and the last 1x1 convolution of the
    heads in ``heatmaps``, since neighbours whose logits are rounded to the same half are both
    peaks, or neither is. Raises :class:`HalfPrecisionError` for weights that half cannot hold.
    """

    def __init__(self, network: nn.Module, heatmaps: Collection[str]) -> None:
        super().__init__()
        fold_normalization(network)
        heads = network.get_submodule("heads")
        for name in heatmaps:
            head = heads.get_submodule(name)
            assert isinstance(head, PredictionHead)
            head[-1] = _Exact(head[-1])
        _round_weights(network)
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute raw maps."""
        maps = self.network(images.to(torch.float16))
        return {name: values.to(torch.float32) for name, values in maps.items()}


class _Exact(nn.Module):
    """A layer that stays in float32 behind layers in half."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layer(x.to(torch.float32)))


@torch.no_grad()
def fold_normalization(network: nn.Module) -> None:
    """Multiply what batch normalisation does after a convolution into the convolution.

    ``network`` is in inference mode. Which layer follows which is seen by running it once.
    """
    names = {module: name for name, module in network.named_modules()}
    for convolution, norm in _normalized_convolutions(network):
        _fold(convolution, norm)
        network.set_submodule(names[norm], nn.Identity())


def _normalized_convolutions(network: nn.Module) -> list[tuple[Convolution, nn.BatchNorm2d]]:
    # The tensors are kept as well: identities of dead ones are given to new ones.
    made_by: dict[int, tuple[Convolution, Tensor]] = {}
    pairs = []

    def remember(module: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(module, Convolution)
        made_by[id(output)] = (module, output)

    def pair(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        pairs.append((made_by[id(inputs[0])][0], module))

    hooks = []
    for module in network.modules():
        if isinstance(module, Convolution):
            hooks.append(module.register_forward_hook(remember))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(pair))
    device = next(network.parameters()).device
    try:
        network(torch.zeros(1, 3, _EXAMPLE_PX, _EXAMPLE_PX, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return pairs


def _fold(convolution: Convolution, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    # Output channels stand second in a transposed convolution's weight.
    per_output = (1, -1, 1, 1) if isinstance(convolution, nn.ConvTranspose2d) else (-1, 1, 1, 1)
    weight = convolution.weight.double() * factor.reshape(per_output)
    bias = (
        -norm.running_mean.double()
        if convolution.bias is None
        else (convolution.bias.double() - norm.running_mean.double())
    )
    convolution.weight = nn.Parameter(weight.float())
    convolution.bias = nn.Parameter((bias * factor + norm.bias.double()).float())


@torch.no_grad()
def _round_weights(network: nn.Module) -> None:
    exact: set[nn.Module] = set()
    for name, module in network.named_modules():  # an _Exact comes before its layer
        if isinstance(module, _Exact):
            exact.add(module.layer)
        if module in exact or isinstance(module, DeformableConvolution):
            continue
        for key, weight in module.named_parameters(recurse=False):
            largest = weight.abs().max().item()
            if not largest <= _LARGEST:  # NaN as well
                raise HalfPrecisionError(
                    f"{name}.{key} has weights of up to {largest:.3g}, normalisation included, "
                    f"but half precision ends at {_LARGEST:.0f}. Export with --precision fp32."
                )
            setattr(module, key, nn.Parameter(weight.to(torch.float16), requires_grad=False))
