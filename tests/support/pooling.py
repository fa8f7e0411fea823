"""Inputs and bitwise comparison for tests of the corner pooling kernels."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.gpu_check.kernels import DTYPES
from model_export.networks.corner_pool_ops import INPUTS


def maps(op_type: str, shape: tuple[int, ...], kernel_format: str, seed: int) -> list[Tensor]:
    """Return random inputs of the operator, with ties and infinities, without NaN."""
    generator = np.random.default_rng(seed)
    inputs = []
    for _ in range(INPUTS[op_type]):
        values = generator.standard_normal(shape) * 10.0 ** generator.integers(-8, 5, shape)
        ties = generator.integers(-2, 3, shape).astype(float)
        values = np.where(generator.random(shape) < 0.2, ties, values)
        values = np.where(generator.random(shape) < 0.1, -np.inf, values)
        values = np.where(generator.random(shape) < 0.002, np.inf, values)
        # A random slope, so that maxima occur at every side.
        slope = np.add.outer(np.arange(shape[2]), np.arange(shape[3])) * generator.normal()
        inputs.append(torch.from_numpy(values + slope).to(torch.float32).to(DTYPES[kernel_format]))
    return inputs


def bits(values: Tensor) -> NDArray[np.unsignedinteger]:
    """Return the bits of ``values`` as unsigned integers."""
    wide = values.element_size() == 4
    signed = values.contiguous().view(torch.int32 if wide else torch.int16).numpy()
    return signed.view(np.uint32 if wide else np.uint16)


def from_bits(values: NDArray[np.unsignedinteger], kernel_format: str) -> Tensor:
    """Invert :func:`bits`."""
    signed = values.view(np.int32 if values.itemsize == 4 else np.int16)
    return torch.from_numpy(signed.copy()).view(DTYPES[kernel_format])


def assert_same(pooled: NDArray[np.unsignedinteger], expected: Tensor, kernel_format: str) -> None:
    """Assert bitwise equality, except for the kind of NaN and the sign of zero."""
    torch.testing.assert_close(
        from_bits(pooled, kernel_format), expected, rtol=0, atol=0, equal_nan=True
    )
