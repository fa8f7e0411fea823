"""Corner pooling (*CornerNet*, Law and Deng 2018, section 3.2): running maxima from one side.

In PyTorch a flip and a cumulative maximum. In an exported file one operator per direction,
``centernet::corner_pool_<direction>``, so that an engine that has a kernel for it finds it by
name; :mod:`model_export.corner_functions` adds the body that every other engine runs.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

DOMAIN = "centernet"
"""ONNX domain of the four operators."""

OP_TYPES: Mapping[str, str] = {
    direction: f"corner_pool_{direction}" for direction in ("top", "bottom", "left", "right")
}

PLUGIN_ATTRIBUTES: Mapping[str, str] = {"plugin_namespace": DOMAIN, "plugin_version": "1"}
"""Where TensorRT's parser looks for a plugin of the operator's name; all others ignore them."""

_ROWS, _COLUMNS = 2, 3


def top_pool(x: Tensor) -> Tensor:
    """Maximum of each cell and all below it; any (N, C, H, W) to the same shape.

    NaN spreads to every cell above it. That and -inf hold for PyTorch only: the exported
    ``MaxPool`` skips NaN in ONNX Runtime, and makes -3.4e38 of a column of -inf.
    """
    if torch.onnx.is_in_onnx_export():
        return _operator("top", x)
    return x.flip(_ROWS).cummax(_ROWS).values.flip(_ROWS)


def bottom_pool(x: Tensor) -> Tensor:
    """Maximum of each cell and all above it; see :func:`top_pool`."""
    if torch.onnx.is_in_onnx_export():
        return _operator("bottom", x)
    return x.cummax(_ROWS).values


def left_pool(x: Tensor) -> Tensor:
    """Maximum of each cell and all to the right of it; see :func:`top_pool`."""
    if torch.onnx.is_in_onnx_export():
        return _operator("left", x)
    return x.flip(_COLUMNS).cummax(_COLUMNS).values.flip(_COLUMNS)


def right_pool(x: Tensor) -> Tensor:
    """Maximum of each cell and all to the left of it; see :func:`top_pool`."""
    if torch.onnx.is_in_onnx_export():
        return _operator("right", x)
    return x.cummax(_COLUMNS).values


def column_max(x: Tensor) -> Tensor:
    """Maximum of each column, (N, C, H, W) to (N, C, 1, W): a top pool after a bottom pool.

    One half of center pooling (*Keypoint Triplets*, Duan et al. 2019, section 3.3).
    """
    return x.amax(_ROWS, keepdim=True)


def row_max(x: Tensor) -> Tensor:
    """Maximum of each row, (N, C, H, W) to (N, C, H, 1); the other half of center pooling."""
    return x.amax(_COLUMNS, keepdim=True)


def _operator(direction: str, x: Tensor) -> Tensor:
    """Stand for the operator while a graph is recorded; computes nothing."""
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{OP_TYPES[direction]}",
        (x,),
        dict(PLUGIN_ATTRIBUTES),
        dtype=x.dtype,
        shape=x.shape,
        version=1,
    )
