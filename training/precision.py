"""Choice between float32 and bfloat16 for the network on CPUs, by a trial of both."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

CpuPrecision = Literal["float32", "bfloat16"]

MIN_GAIN = 1.1
"""bfloat16 is used if a training step in float32 takes at least this multiple of its CPU time."""
_ROUNDS = 3
"""Steps per precision that are timed, in turns, after one that is not."""

Loss = Callable[[nn.Module, torch.dtype], Tensor]
"""Computes the loss of one batch with a network that computes in a dtype."""


@dataclass(frozen=True)
class PrecisionChoice:
    """A precision and the reason for it."""

    precision: CpuPrecision
    reason: str


def has_bfloat16() -> bool:
    """Return whether the CPU has instructions for bfloat16, AVX512-BF16 or AMX.

    Others convert every operand, and are always faster in float32.
    """
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def choose_precision(network: nn.Module, loss: Loss) -> PrecisionChoice:
    """Compare training steps in both precisions, on a copy of ``network``.

    The CPU time of all threads is compared: other processes affect it less than the duration.

    The instructions alone do not decide: networks with few channels gain nothing from them, because
    the conversions and the other layers take most of the time.
    """
    trial = copy.deepcopy(network).train()
    fastest_s = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for timed in (False, *[True] * _ROUNDS):
        for dtype in fastest_s:
            started = time.process_time()
            loss(trial, dtype).backward()  # type: ignore[no-untyped-call]
            trial.zero_grad(set_to_none=True)
            if timed:
                fastest_s[dtype] = min(fastest_s[dtype], time.process_time() - started)
    gain = fastest_s[torch.float32] / fastest_s[torch.bfloat16]
    compared = f"a step in float32 takes {gain:.2f} times the CPU time of one in bfloat16"
    if gain < MIN_GAIN:
        return PrecisionChoice("float32", f"float32; {compared}")
    return PrecisionChoice("bfloat16", f"bfloat16, with losses in float32; {compared}")
