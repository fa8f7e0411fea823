"""ONNX functions that implement the corner pooling operators in the file that uses them.

ONNX has no cumulative maximum, but a ``MaxPool`` with a window from each cell to the border
computes it: with a window of ``longest_side`` cells and ``longest_side - 1`` cells of padding on
one side, every map up to that size keeps its size. ONNX Runtime clips windows at the border: along
columns a longer window costs nothing, along rows it does (256 channels of 128x128, one thread:
columns 48 and 49 ms with windows of 128 and 256 cells, rows 62 and 126 ms). A file therefore gets
the shortest window that covers all of its input sizes.
"""

from collections.abc import Mapping, Sequence

import onnx
from onnx import helper

from model_export.networks.corner_pool_ops import (
    DIRECTIONS,
    DOMAIN,
    OP_TYPES,
    PLUGIN_ATTRIBUTES,
    SUM_OP_TYPES,
)

_PADDED_SIDE: Mapping[str, int] = {"top": 2, "bottom": 0, "left": 3, "right": 1}
"""Index of the padded side in ONNX's ``pads`` (top, left, bottom, right)."""


def add_corner_pool_functions(model: onnx.ModelProto, longest_side: int) -> None:
    """Add a function to ``model`` for each corner pooling operator that it uses.

    ``longest_side`` is the largest height or width of a pooled map, in cells; larger maps would be
    pooled over that many cells only.
    """
    used = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    opset = next(entry for entry in model.opset_import if not entry.domain)
    for direction in DIRECTIONS:
        if OP_TYPES[direction] in used:
            body = [_max_pool(direction, longest_side, "x", "y")]
            model.functions.append(_function(OP_TYPES[direction], ["x"], body, opset))
    for pair, op_type in SUM_OP_TYPES.items():
        if op_type in used:
            names = ("a", "b")
            body = [
                _max_pool(direction, longest_side, name, f"pooled_{name}")
                for direction, name in zip(pair, names, strict=True)
            ]
            body.append(helper.make_node("Add", [f"pooled_{name}" for name in names], ["y"]))
            model.functions.append(_function(op_type, names, body, opset))


def _max_pool(direction: str, longest_side: int, source: str, result: str) -> onnx.NodeProto:
    pads = [0, 0, 0, 0]
    pads[_PADDED_SIDE[direction]] = longest_side - 1
    vertical = direction in ("top", "bottom")
    window = [longest_side, 1] if vertical else [1, longest_side]
    return helper.make_node("MaxPool", [source], [result], kernel_shape=window, pads=pads)


def _function(
    op_type: str,
    inputs: Sequence[str],
    body: Sequence[onnx.NodeProto],
    opset: onnx.OperatorSetIdProto,
) -> onnx.FunctionProto:
    return helper.make_function(
        DOMAIN,
        op_type,
        inputs,
        ["y"],
        body,
        [opset],
        # The checker and ONNX Runtime accept only declared attributes on the nodes.
        attributes=list(PLUGIN_ATTRIBUTES),
    )
