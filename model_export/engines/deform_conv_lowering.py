"""Lowering of ``DeformConv`` to ``GridSample`` and ``MatMul``, which TensorRT-RTX supports.

Each kernel tap of each output cell samples the input at one point with ``GridSample``: bilinear,
and 0 outside of the map. The samples, multiplied by the mask, are the columns that are multiplied
with the weights, as in an ordinary convolution (*Deformable ConvNets v2*, Zhu et al. 2019, section
3.2). Points and samples are float32 in fp16 files too: in half precision a point on a map of 128
cells is off by up to 0.03 cells.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import helper, numpy_helper

from model_export.engines.errors import LoweringError

OP_TYPE = "DeformConv"

_FLOAT = onnx.TensorProto.FLOAT
_ROWS, _COLUMNS = 2, 3
_LINEAR_OPSET = 20
"""From this opset on, mode ``bilinear`` of ``GridSample`` is named ``linear``."""


def lower_deform_convs(model: onnx.ModelProto) -> int:
    """Replace every ``DeformConv`` of ``model`` in place and return their number.

    Supports stride 1, dilation 1, one group and padding that keeps the size, as the networks of
    this project use; height and width may be dynamic. Raises :class:`LoweringError` otherwise.
    """
    old = list(model.graph.node)
    count = [str(node.op_type) for node in old].count(OP_TYPE)
    if count:
        types = _tensor_types(model)
        opset = next(entry.version for entry in model.opset_import if not entry.domain)
        del model.graph.node[:]
        for node in old:
            if node.op_type == OP_TYPE:
                _Lowering(model.graph, node, types, opset).run()
            else:
                model.graph.node.append(node)
    return count


def _tensor_types(model: onnx.ModelProto) -> Mapping[str, onnx.TypeProto.Tensor]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: value.type.tensor_type
        for value in (*graph.value_info, *graph.input, *graph.output)
    }


def _read_kernel(node: onnx.NodeProto) -> tuple[int, int]:
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    kernel = tuple(attributes.get("kernel_shape", ()))
    accepted = {
        "strides": [1, 1],
        "dilations": [1, 1],
        "group": 1,
        "offset_group": 1,
        "pads": [side // 2 for side in kernel] * 2,
    }
    received = {name: attributes.get(name, default) for name, default in accepted.items()}
    received["pads"] = attributes.get("pads", [0, 0, 0, 0])
    if len(kernel) != 2 or any(side % 2 == 0 for side in kernel) or received != accepted:
        raise LoweringError(
            f"the {OP_TYPE} {node.name or node.output[0]!r} has kernel_shape {list(kernel)} and "
            f"{received}. TensorRT-RTX has no {OP_TYPE}, and only those with an odd kernel_shape "
            "and stride 1, dilation 1, one group and padding that keeps the size can be replaced "
            "by other operators. Use --backend tensorrt, or serve the file with ONNX Runtime."
        )
    return kernel[0], kernel[1]


class _Lowering:
    """Lowering of one ``DeformConv``.

    Shapes: x (N, C, H, W); weight (O, C, k, k); offsets (N, taps * 2, H, W), the row before the
    column of each tap, taps in row-major order; mask (N, taps, H, W). The names of new values
    begin with the name of the output, so that they are unique.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        node: onnx.NodeProto,
        types: Mapping[str, onnx.TypeProto.Tensor],
        opset: int,
    ) -> None:
        self._graph = graph
        self._node = node
        self._kernel = _read_kernel(node)
        self._taps = self._kernel[0] * self._kernel[1]
        self._mode = "linear" if opset >= _LINEAR_OPSET else "bilinear"
        x = types[node.input[0]]
        self._element = x.elem_type
        self._dims = [dim.dim_value for dim in x.shape.dim]  # 0 if dynamic

    def run(self) -> None:
        """Append the nodes that compute the output."""
        x, weight, offsets, *rest = self._node.input
        bias, mask = (*rest, "", "")[:2]
        samples = self._add(
            "GridSample", [self._float(x, "x"), self._points(self._float(offsets, "offsets"))],
            "samples", mode=self._mode, padding_mode="zeros", align_corners=0,
        )  # (N, C, taps, H*W)  # fmt: skip
        if mask:
            factors = self._reshape(self._float(mask, "mask"), [0, 1, self._taps, -1], "factors")
            samples = self._add("Mul", [samples, factors], "masked")
        width = self._dims[1] * self._taps
        columns = self._reshape(samples, [0, width, -1], "columns")
        if self._element != _FLOAT:
            columns = self._add("Cast", [columns], "narrow", to=self._element)
        output = self._add("MatMul", [self._reshape(weight, [0, width], "w"), columns], "product")
        if bias:
            output = self._add("Add", [output, self._reshape(bias, [-1, 1], "b")], "sum")
        self._add("Reshape", [output, self._output_shape(offsets)], None)

    def _points(self, offsets: str) -> str:
        """Add the sampling points (N, taps, H*W, 2), x before y; -1 and 1 are the outer edges."""
        parts = []
        for axis in (_COLUMNS, _ROWS):
            name = "row" if axis == _ROWS else "column"
            bounds = {"first": axis - _ROWS, "last": 2 * self._taps, "axis": 1, "step": 2}
            slices = [self._constant([value], f"{name}_{key}") for key, value in bounds.items()]
            displacement = self._add(
                "Slice", [offsets, *slices], f"{name}_offsets"
            )  # (N, taps, H, W)
            if self._dims[axis]:
                scale, origin = self._static_grid(axis, name)
            else:
                scale, origin = self._dynamic_grid(axis, name)
            displacement = self._add("Mul", [displacement, scale], f"{name}_displacements")
            position = self._add("Add", [displacement, origin], f"{name}_positions")
            parts.append(self._reshape(position, [0, self._taps, -1, 1], f"{name}_points"))
        return self._add("Concat", parts, "points", axis=3)

    def _tap_positions(self, axis: int) -> NDArray[np.int64]:
        """Return the row (or column) of each tap relative to its cell: (1, taps, 1, 1)."""
        indices: NDArray[np.int64] = np.indices(self._kernel)[axis - _ROWS]
        return indices.reshape(1, self._taps, 1, 1) - self._kernel[axis - _ROWS] // 2

    def _static_grid(self, axis: int, name: str) -> tuple[str, str]:
        """Add constants for a static dimension: scale and origin of the sampling points.

        In the coordinates of ``GridSample``, the scale is the length of a cell, 2 / n, and the
        origin is the position of each tap without its offset. The middle of cell i of n is at
        (2 i + 1) / n - 1.
        """
        cells = self._dims[axis]
        shape = [1, 1, 1, 1]
        shape[axis] = cells
        origin = (2 * (np.arange(cells).reshape(shape) + self._tap_positions(axis)) + 1) / cells - 1
        return (
            self._constant(np.float32(2 / cells), f"{name}_scale"),
            self._constant(origin.astype(np.float32), f"{name}_origin"),
        )

    def _dynamic_grid(self, axis: int, name: str) -> tuple[str, str]:
        """Add nodes that compute the values of :meth:`_static_grid` from a dynamic dimension."""

        def constant(value: ArrayLike, role: str) -> str:
            return self._constant(value, f"{name}_{role}")

        def add(op_type: str, inputs: list[str], role: str, **attributes: int) -> str:
            return self._add(op_type, inputs, f"{name}_{role}", **attributes)

        two = constant(np.float32(2), "two")
        one = constant(np.float32(1), "one")
        dim = add("Shape", [self._node.input[0]], "shape", start=axis, end=axis + 1)
        count = add("Squeeze", [dim], "count")
        cells = add("Cast", [count], "cells", to=_FLOAT)
        indices = add("Range", [constant(0, "start"), count, constant(1, "by")], "range")
        shape = [1, 1, 1, 1]
        shape[axis] = -1
        indices = self._reshape(add("Cast", [indices], "cast", to=_FLOAT), shape, f"{name}_index")
        doubled = add("Mul", [indices, two], "doubled")
        edge = constant((2 * self._tap_positions(axis) + 1).astype(np.float32), "reach")
        share = add("Div", [add("Add", [doubled, edge], "middle"), cells], "share")
        return add("Div", [two, cells], "scale"), add("Sub", [share, one], "origin")

    def _output_shape(self, offsets: str) -> str:
        """Add the shape (N, O, H, W) with -1 for O, as ``Reshape`` infers at most one dimension."""
        if self._dims[_ROWS] and self._dims[_COLUMNS]:
            return self._constant([0, -1, *self._dims[_ROWS:]], "shape")
        sides = self._add("Shape", [offsets], "sides", start=_ROWS)
        return self._add("Concat", [self._constant([0, -1], "front"), sides], "shape", axis=0)

    def _float(self, value: str, name: str) -> str:
        if self._element == _FLOAT:
            return value
        return self._add("Cast", [value], f"{name}_float", to=_FLOAT)

    def _reshape(self, value: str, shape: list[int], name: str) -> str:
        return self._add("Reshape", [value, self._constant(shape, f"{name}_shape")], name)

    def _constant(self, value: ArrayLike, name: str) -> str:
        """Add an initializer: float32 as it is, everything else as int64, the type of shapes."""
        array = np.asarray(value)
        array = array if array.dtype == np.float32 else array.astype(np.int64)
        name = f"{self._node.output[0]}/{name}"
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def _add(
        self, op_type: str, inputs: list[str], name: str | None, **attributes: int | str
    ) -> str:
        """Append a node and return its output; without a name, the output of the ``DeformConv``."""
        output = self._node.output[0] if name is None else f"{self._node.output[0]}/{name}"
        node = helper.make_node(op_type, inputs, [output], f"{output}/{op_type}")
        node.attribute.extend(
            helper.make_attribute(key, value) for key, value in attributes.items()
        )
        self._graph.node.append(node)
        return output
