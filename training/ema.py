"""The exponential average of the weights along a run."""

import copy

import torch
from torch import nn


class WeightAverage:
    """Averages parameters and batch-norm statistics after every step.

    The decay grows as ``(1 + n) / (10 + n)`` up to its limit, so that the random initial weights
    are forgotten early.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.updates = 0
        self._decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average towards ``network``."""
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        current = network.state_dict()
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                value.lerp_(current[name], 1 - decay)
            else:
                value.copy_(current[name])
