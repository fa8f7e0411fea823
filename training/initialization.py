"""Weight initialization for training without a pretrained backbone."""

import math

import torch
from torch import nn

from model_export.networks.timm_backbone import TimmBackbone

CENTER_PRIOR = 0.01
"""Initial probability of the heatmap everywhere, as in *RetinaNet* (section 4.1).

The reference implementation starts with 0.1 and pretrained backbones. With random weights, the
first steps then lower all scores: every weight of the last layer becomes negative, and no score
can exceed the bias.
"""


def initialize(network: nn.Module) -> None:
    """Initialize a network in place: He initialization, with small weights in the heads.

    Backbones of timm keep the initialization of timm.
    """
    backbones = [module for module in network.modules() if isinstance(module, TimmBackbone)]
    initialized = {layer for backbone in backbones for layer in backbone.modules()}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module not in initialized:
            _initialize_convolution(name, module)
    for name, heads in network.named_modules():
        if name.endswith("heads") and isinstance(heads, nn.ModuleDict):
            for head_name, head in heads.items():
                _initialize_head(head_name, head)


def _initialize_convolution(name: str, layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    if name.endswith("offsets_and_mask"):
        return  # stays zero: deformable convolutions start as regular ones
    if isinstance(layer, nn.ConvTranspose2d) and layer.groups > 1:
        _fill_with_interpolation(layer)
    elif isinstance(layer, nn.ConvTranspose2d):
        # The weight is (in, out, ...), so torch's fan_in is the fan-out.
        nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
    else:
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


@torch.no_grad()
def _fill_with_interpolation(layer: nn.ConvTranspose2d) -> None:
    """Initialize a depthwise transposed convolution as bilinear interpolation."""
    side = layer.kernel_size[0]
    center = (side - 1) / 2
    row = 1 - (torch.arange(side) - center).abs() / layer.stride[0]
    layer.weight.copy_(torch.outer(row, row).expand_as(layer.weight))


def _initialize_head(name: str, head: nn.Module) -> None:
    output = list(head.children())[-1]
    assert isinstance(output, nn.Conv2d)
    nn.init.normal_(output.weight, std=0.01)
    if name.endswith("heatmap") and output.bias is not None:
        nn.init.constant_(output.bias, -math.log((1 - CENTER_PRIOR) / CENTER_PRIOR))
