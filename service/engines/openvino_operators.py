"""Operators of the ONNX files that OpenVINO's ONNX frontend does not convert by itself."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

_DOMAIN = "centernet"
_MAP_STRIDE = 4
"""Input pixels per cell of the maps that the corner networks pool."""

_DIRECTIONS = {"top": (0, False), "bottom": (0, True), "left": (1, False), "right": (1, True)}
"""Pooled axis (0: rows), and whether the padding comes before the map."""

_SUMS = (("top", "left"), ("bottom", "right"))


def operator_extensions(openvino: Any, longest_side_px: int) -> Sequence[Any]:
    """Return frontend extensions for deformable convolution and corner pooling.

    The corner pooling operators are functions of the ONNX file, which a converter cannot read, so
    their ``MaxPool`` nodes are built again. ``longest_side_px``: the largest height or width of an
    input; a window covers a map of that size.
    """
    extension = import_module("openvino.frontend.onnx").ConversionExtension
    cells = -(-longest_side_px // _MAP_STRIDE)
    pools = {
        direction: _corner_pool(openvino.opset8, axis, is_padded_before, cells)
        for direction, (axis, is_padded_before) in _DIRECTIONS.items()
    }

    def deform_conv(node: Any) -> list[Any]:
        return [_deform_conv(openvino, node)]

    def single(direction: str) -> Callable[[Any], list[Any]]:
        return lambda node: [pools[direction](node.get_input(0))]

    def pair(first: str, second: str) -> Callable[[Any], list[Any]]:
        return lambda node: [
            openvino.opset8.add(
                pools[first](node.get_input(0)), pools[second](node.get_input(1))
            ).output(0)
        ]

    return [
        extension("DeformConv", deform_conv),
        *(extension(f"corner_pool_{name}", _DOMAIN, single(name)) for name in _DIRECTIONS),
        *(extension(f"corner_pool_{a}_{b}_sum", _DOMAIN, pair(a, b)) for a, b in _SUMS),
    ]


def _corner_pool(ops: Any, axis: int, is_padded_before: bool, cells: int) -> Callable[[Any], Any]:
    """Return a function that adds the maximum of the cells from each cell to the border."""
    window, padding = [1, 1], [0, 0]
    window[axis], padding[axis] = cells, cells - 1
    begin, end = (padding, [0, 0]) if is_padded_before else ([0, 0], padding)

    def pool(values: Any) -> Any:
        return ops.max_pool(values, [1, 1], [1, 1], begin, end, window).output(0)

    return pool


def _deform_conv(openvino: Any, node: Any) -> Any:
    """Convert a ``DeformConv``; the order of offsets and masks is the same in both."""
    pads = _integers(node, "pads", [0, 0, 0, 0])
    has_bias, has_mask = node.get_input_size() > 3, node.get_input_size() > 4
    result = openvino.opset8.deformable_convolution(
        node.get_input(0),
        node.get_input(2),
        node.get_input(1),
        _integers(node, "strides", [1, 1]),
        pads[:2],
        pads[2:],
        _integers(node, "dilations", [1, 1]),
        mask=node.get_input(4) if has_mask else None,
        group=int(node.get_attribute("group", 1)),
        deformable_group=int(node.get_attribute("offset_group", 1)),
        bilinear_interpolation_pad=True,
    )
    if has_bias:
        axes = openvino.opset8.constant([0, 2, 3], dtype=openvino.Type.i64)
        bias = openvino.opset8.unsqueeze(node.get_input(3), axes)
        result = openvino.opset8.add(result, bias)
    return result.output(0)


def _integers(node: Any, name: str, default: list[int]) -> list[int]:
    return [int(value) for value in node.get_attribute(name, default)]
