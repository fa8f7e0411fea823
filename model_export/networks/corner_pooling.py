"""Corner pooling (*CornerNet*, Law and Deng 2018, section 3.2): running maxima from one side.

In PyTorch a flip and a cumulative maximum. In an exported file one operator per direction,
``centernet::corner_pool_<direction>``, and one per pair of directions that is added up, so that
an engine that has a kernel for it finds it by name; :mod:`model_export.onnx.corner_pool_functions` adds the
body that every other engine runs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model_export.onnx.corner_pool_ops import DOMAIN, OP_TYPES, PLUGIN_ATTRIBUTES, SUM_OP_TYPES

Pool = Callable[[Tensor], Tensor]
"""(N, C, H, W) to the same, or to a shape that is broadcast to it."""

_ROWS, _COLUMNS = 2, 3


def top_pool(x: Tensor) -> Tensor:
    """Maximum of each cell and all below it; any (N, C, H, W) to the same shape.

    NaN spreads to every cell above it, and -inf stays: in PyTorch and in TensorRT's plugin. The
    exported ``MaxPool`` does neither in ONNX Runtime: NaN may hide what stands before it, and
    a float32 column of -inf becomes -3.4e38.
    """
    if torch.onnx.is_in_onnx_export():
        return _operator(OP_TYPES["top"], x)
    return x.flip(_ROWS).cummax(_ROWS).values.flip(_ROWS)


def bottom_pool(x: Tensor) -> Tensor:
    """Maximum of each cell and all above it; see :func:`top_pool`."""
    if torch.onnx.is_in_onnx_export():
        return _operator(OP_TYPES["bottom"], x)
    return x.cummax(_ROWS).values


def left_pool(x: Tensor) -> Tensor:
    """Maximum of each cell and all to the right of it; see :func:`top_pool`."""
    if torch.onnx.is_in_onnx_export():
        return _operator(OP_TYPES["left"], x)
    return x.flip(_COLUMNS).cummax(_COLUMNS).values.flip(_COLUMNS)


def right_pool(x: Tensor) -> Tensor:
    """Maximum of each cell and all to the left of it; see :func:`top_pool`."""
    if torch.onnx.is_in_onnx_export():
        return _operator(OP_TYPES["right"], x)
    return x.cummax(_COLUMNS).values


def column_max(x: Tensor) -> Tensor:
    """Maximum of each column, (N, C, H, W) to (N, C, 1, W): a top pool after a bottom pool.

    One half of center pooling (*Keypoint Triplets*, Duan et al. 2019, section 3.3).
    """
    return x.amax(_ROWS, keepdim=True)


def row_max(x: Tensor) -> Tensor:
    """Maximum of each row, (N, C, H, W) to (N, C, H, 1); the other half of center pooling."""
    return x.amax(_COLUMNS, keepdim=True)


@dataclass(frozen=True)
class PoolPair:
    """How the vertical and the horizontal branch of a block are pooled."""

    vertical: Pool
    horizontal: Pool
    sum_op_type: str | None = None
    """Operator that pools two maps and adds them in one go, if there is one."""

    def sum(self, vertical: Tensor, horizontal: Tensor) -> Tensor:
        """Both maps, each pooled its way, added up; two (N, C, H, W) to one."""
        if self.sum_op_type and torch.onnx.is_in_onnx_export():
            return _operator(self.sum_op_type, vertical, horizontal)
        return self.vertical(vertical) + self.horizontal(horizontal)


TOP_LEFT = PoolPair(top_pool, left_pool, SUM_OP_TYPES["top", "left"])
BOTTOM_RIGHT = PoolPair(bottom_pool, right_pool, SUM_OP_TYPES["bottom", "right"])
CENTER = PoolPair(column_max, row_max)


def _operator(op_type: str, *inputs: Tensor) -> Tensor:
    """Stand for the operator while a graph is recorded; computes nothing."""
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{op_type}",
        inputs,
        dict(PLUGIN_ATTRIBUTES),
        dtype=inputs[0].dtype,
        shape=inputs[0].shape,
        version=1,
    )
