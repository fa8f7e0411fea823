"""Exponential moving average (EMA) of the weights."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import PARAM_LIST, AveragedModel


class ExponentialMovingAverage(AveragedModel):
    """Average of a network's parameters and batch-norm statistics, in evaluation mode.

    After ``n`` updates the decay is ``(1 + n) / (10 + n)``, at most ``decay``, so that the random
    initial weights lose their influence early. torch's ``get_ema_multi_avg_fn`` has a constant
    decay, and averages the integer step counts of batch norm, which rounds them down.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network, multi_avg_fn=self._average, use_buffers=True)
        self._decay = decay
        self.updates = 0
        self.eval().requires_grad_(False)

    @property
    def updates(self) -> int:
        """Number of calls of ``update_parameters`` so far."""
        return int(self.n_averaged) - 1

    @updates.setter
    def updates(self, count: int) -> None:
        # At n_averaged = 0 AveragedModel would copy the weights, leaving out the initial ones.
        self.n_averaged.fill_(count + 1)

    @torch.no_grad()
    def _average(self, averaged: PARAM_LIST, current: PARAM_LIST, _: Tensor | int) -> None:
        """Update tensors of one dtype in place."""
        if averaged[0].is_floating_point():
            decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
            torch._foreach_lerp_(averaged, current, 1 - decay)
        else:
            torch._foreach_copy_(averaged, current)
