"""Corner pooling (*CornerNet*, Law and Deng 2018, section 3.2): cumulative maxima from one side.

PyTorch runs a flip and a cumulative maximum. An exported file has one custom operator per
direction, ``centernet::corner_pool_<direction>``, and one per pair of directions whose results are
added, so that TensorRT can map it to a plugin; :mod:`model_export.onnx.corner_pool_functions` adds
the ONNX function that other runtimes execute.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model_export.networks.corner_pool_ops import DOMAIN, OP_TYPES, PLUGIN_ATTRIBUTES, SUM_OP_TYPES

Pool = Callable[[Tensor], Tensor]
"""Maps (N, C, H, W) to the same shape, or to one that broadcasts to it."""

_ROWS, _COLUMNS = 2, 3


def top_pool(x: Tensor) -> Tensor:
    """Return the maximum of each cell and all cells below it; any (N, C, H, W) to the same shape.

    In PyTorch and in the TensorRT plugin, NaN propagates to every cell above it and -inf is kept.
    The exported ``MaxPool`` does neither in ONNX Runtime: NaN may replace earlier values, and a
    float32 column of -inf becomes -3.4e38.
    """
    if torch.onnx.is_in_onnx_export():
        return _operator(OP_TYPES["top"], x)
    return x.flip(_ROWS).cummax(_ROWS).values.flip(_ROWS)


def bottom_pool(x: Tensor) -> Tensor:
    """Return the maximum of each cell and all cells above it; see :func:`top_pool`."""
    if torch.onnx.is_in_onnx_export():
        return _operator(OP_TYPES["bottom"], x)
    return x.cummax(_ROWS).values


def left_pool(x: Tensor) -> Tensor:
    """Return the maximum of each cell and all cells to its right; see :func:`top_pool`."""
    if torch.onnx.is_in_onnx_export():
        return _operator(OP_TYPES["left"], x)
    return x.flip(_COLUMNS).cummax(_COLUMNS).values.flip(_COLUMNS)


def right_pool(x: Tensor) -> Tensor:
    """Return the maximum of each cell and all cells to its left; see :func:`top_pool`."""
    if torch.onnx.is_in_onnx_export():
        return _operator(OP_TYPES["right"], x)
    return x.cummax(_COLUMNS).values


def column_max(x: Tensor) -> Tensor:
    """Return the maximum of each column, (N, C, H, W) to (N, C, 1, W).

    Equal to a top pool after a bottom pool; one half of center pooling (*Keypoint Triplets*, Duan
    et al. 2019, section 3.3).
    """
    return x.amax(_ROWS, keepdim=True)


def row_max(x: Tensor) -> Tensor:
    """Return the maximum of each row, (N, C, H, W) to (N, C, H, 1); see :func:`column_max`."""
    return x.amax(_COLUMNS, keepdim=True)


@dataclass(frozen=True)
class PoolPair:
    """Pooling of the vertical and the horizontal branch of a block."""

    vertical: Pool
    horizontal: Pool
    sum_op_type: str | None = None
    """ONNX operator that pools two maps and adds them, if there is one."""

    def sum(self, vertical: Tensor, horizontal: Tensor) -> Tensor:
        """Return the sum of both pooled maps; two (N, C, H, W) to one."""
        if self.sum_op_type and torch.onnx.is_in_onnx_export():
            return _operator(self.sum_op_type, vertical, horizontal)
        return self.vertical(vertical) + self.horizontal(horizontal)


TOP_LEFT = PoolPair(top_pool, left_pool, SUM_OP_TYPES["top", "left"])
BOTTOM_RIGHT = PoolPair(bottom_pool, right_pool, SUM_OP_TYPES["bottom", "right"])
CENTER = PoolPair(column_max, row_max)


def _operator(op_type: str, *inputs: Tensor) -> Tensor:
    """Emit the custom operator while a graph is exported; computes nothing."""
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{op_type}",
        inputs,
        dict(PLUGIN_ATTRIBUTES),
        dtype=inputs[0].dtype,
        shape=inputs[0].shape,
        version=1,
    )
