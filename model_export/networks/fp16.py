"""Conversion of a network's layers to fp16; its inputs and outputs stay float32.

float16 has 11 significant bits and a largest value of 65504. Batch normalization is first folded
into the convolutions, in float64, so that every weight is rounded once.
"""

import itertools
from collections.abc import Collection, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from model_export.errors import Fp16Error
from model_export.networks.center_point import PredictionHead
from model_export.networks.deformable import DeformableConvolution
from model_export.networks.squeeze import Concatenation

_LARGEST = torch.finfo(torch.float16).max
_EXAMPLE_PX = 128
"""Input side that all architectures accept."""

Convolution = nn.Conv2d | nn.ConvTranspose2d | DeformableConvolution


class Fp16Network(nn.Module):
    """A network that computes in fp16; float32 (N, 3, H, W) to float32 maps by head.

    Modifies ``network`` in place, since a copy of a large network would double the memory. Two
    kinds of layers stay in float32: deformable convolutions, because fp16 cannot resolve sampling
    points between the cells of a wide map; and the last 1x1 convolution of the heads in
    ``heatmaps``, because different logits of adjacent cells can round to the same fp16 value, and
    then either both cells are peaks or neither is. Raises :class:`Fp16Error` for weights outside
    of the fp16 range.
    """

    def __init__(self, network: nn.Module, heatmaps: Collection[str]) -> None:
        super().__init__()
        fold_normalization(network)
        heads = network.get_submodule("heads")
        for name in heatmaps:
            head = heads.get_submodule(name)
            if isinstance(head, PredictionHead):
                head[-1] = _Float32Layer(head[-1])
            else:  # a single convolution
                heads.register_module(name, _Float32Layer(head))
        _round_weights(network)
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return raw maps by head."""
        maps = self.network(images.to(torch.float16))
        return {name: values.to(torch.float32) for name, values in maps.items()}


class _Float32Layer(nn.Module):
    """A float32 layer with an fp16 input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layer(x.to(torch.float32)))


@torch.no_grad()
def fold_normalization(network: nn.Module) -> None:
    """Fold every batch normalization into the convolutions before it, in place.

    ``network`` must be in eval mode; it is run once to find the convolutions before each layer:
    one, or several whose outputs are concatenated. Raises :class:`Fp16Error` for a normalization
    that does not follow a convolution.
    """
    names = {module: name for name, module in network.named_modules()}
    for convolutions, norm in _normalized_convolutions(network):
        _fold(convolutions, norm)
        # The activation, in the normalization layers of timm; nothing in those of PyTorch.
        network.set_submodule(names[norm], nn.Sequential(*norm.children()))


def _normalized_convolutions(
    network: nn.Module,
) -> list[tuple[tuple[Convolution, ...], nn.BatchNorm2d]]:
    # Keeps the tensors too, because the id of a deleted tensor can be reused.
    producers: dict[int, tuple[tuple[Convolution, ...], Tensor]] = {}
    pairs = []
    names = {module: name for name, module in network.named_modules()}

    def remember(module: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(module, Convolution)
        producers[id(output)] = ((module,), output)

    def join(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if all(id(part) in producers for part in inputs):
            joined = itertools.chain.from_iterable(producers[id(part)][0] for part in inputs)
            producers[id(output)] = (tuple(joined), output)

    def pair(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        if id(inputs[0]) not in producers:
            raise Fp16Error(
                f"the batch normalization {names[module]} does not follow a convolution into which "
                "it could be folded. Export with --precision fp32."
            )
        pairs.append((producers[id(inputs[0])][0], module))

    hooks = []
    for module in network.modules():
        if isinstance(module, Convolution):
            hooks.append(module.register_forward_hook(remember))
        elif isinstance(module, Concatenation):
            hooks.append(module.register_forward_hook(join))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(pair))
    device = next(network.parameters()).device
    try:
        network(torch.zeros(1, 3, _EXAMPLE_PX, _EXAMPLE_PX, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return pairs


def _fold(convolutions: Sequence[Convolution], norm: nn.BatchNorm2d) -> None:
    """Fold ``norm``, which follows the concatenated outputs of ``convolutions``."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * factor
    # A transposed convolution's weight has its output channels second.
    axes = [1 if isinstance(one, nn.ConvTranspose2d) else 0 for one in convolutions]
    counts = [one.weight.shape[axis] for one, axis in zip(convolutions, axes, strict=True)]
    parts = zip(
        convolutions, axes, torch.split(factor, counts), torch.split(shift, counts), strict=True
    )
    for convolution, axis, factors, shifts in parts:
        per_output = (1, -1, 1, 1) if axis else (-1, 1, 1, 1)
        if convolution.bias is not None:
            shifts = shifts + convolution.bias.double() * factors
        weight = convolution.weight.double() * factors.reshape(per_output)
        convolution.weight = nn.Parameter(weight.float())
        convolution.bias = nn.Parameter(shifts.float())


@torch.no_grad()
def _round_weights(network: nn.Module) -> None:
    float32_layers: set[nn.Module] = set()
    for name, module in network.named_modules():  # a wrapper comes before its layer
        if isinstance(module, _Float32Layer):
            float32_layers.add(module.layer)
        if module in float32_layers or isinstance(module, DeformableConvolution):
            continue
        for key, weight in module.named_parameters(recurse=False):
            largest = weight.abs().max().item()
            if not largest <= _LARGEST:  # NaN as well
                raise Fp16Error(
                    f"{name}.{key} has weights of up to {largest:.3g} after folding of batch "
                    f"normalization; fp16 holds at most {_LARGEST:.0f}. Export with "
                    "--precision fp32."
                )
            setattr(module, key, nn.Parameter(weight.to(torch.float16), requires_grad=False))
