"""Starting weights for training without a pretrained trunk."""

import math

from torch import nn

CENTER_PRIOR = 0.1
"""Probability the heatmap starts with everywhere (*RetinaNet*, section 4.1): a bias of -2.19."""


def initialize(network: nn.Module) -> None:
    """Initialise a ``CenterPointNetwork`` in place: He et al. for the trunk, small heads."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            if isinstance(module, nn.ConvTranspose2d):
                # Its weight is (in, out, ...), so what torch calls fan-in is the fan-out.
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, head in network.get_submodule("heads").named_children():
        for layer in head.children():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01 if layer.kernel_size == (3, 3) else 0.001)
        output = list(head.children())[-1]
        if name == "heatmap" and isinstance(output, nn.Conv2d) and output.bias is not None:
            nn.init.constant_(output.bias, -math.log((1 - CENTER_PRIOR) / CENTER_PRIOR))
