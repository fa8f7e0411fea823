"""Deformable convolutions in operators that TensorRT-RTX has: ``GridSample`` and ``MatMul``.

Every tap of every cell is a point where ``GridSample`` reads between the cells, 0 outside of the
map; the samples times the mask are the columns that an ordinary convolution multiplies with its
weights (*Deformable ConvNets v2*, Zhu et al. 2019, section 3.2). Points and samples are float32
in fp16 files too: in half precision a point on a map of 128 cells is off by up to 0.03 cells.
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
"""From here on ``GridSample`` calls linear what was bilinear."""


def lower_deform_convs(model: onnx.ModelProto) -> int:
    """Replace every ``DeformConv`` of ``model`` in place; returns how many there were.

    Stride 1, dilation 1, one group, and padding that keeps the size, as the networks here have
    it; height and width may be free. Raises :class:`LoweringError` for any other.
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
    received = {name: attributes.get(name, usual) for name, usual in accepted.items()}
    received["pads"] = attributes.get("pads", [0, 0, 0, 0])
    if len(kernel) != 2 or any(side % 2 == 0 for side in kernel) or received != accepted:
        raise LoweringError(
            f"the {OP_TYPE} {node.name or node.output[0]!r} has kernel_shape {list(kernel)} and "
            f"{received}. TensorRT-RTX has no {OP_TYPE}, and only those with an odd kernel_shape "
            "and stride 1, dilation 1, one group and padding that keeps the size can be written "
            "in other operators. Use --backend tensorrt, or serve the file with ONNX Runtime."
        )
    return kernel[0], kernel[1]


class _Lowering:
    """One ``DeformConv`` of x (N, C, H, W) and weight (O, C, k, k).

    Offsets (N, taps * 2, H, W) hold rows before columns, tap by tap in row-major order; the mask
    is (N, taps, H, W). New values are named after the output, so that they are unique.
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
        self._dims = [dim.dim_value for dim in x.shape.dim]  # 0 where free

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
        """Where to read, -1 and 1 being the outer edges: (N, taps, H*W, 2), x before y."""
        parts = []
        for axis in (_COLUMNS, _ROWS):
            name = "row" if axis == _ROWS else "column"
            bounds = {"first": axis - _ROWS, "last": 2 * self._taps, "axis": 1, "step": 2}
            slices = [self._constant([value], f"{name}_{key}") for key, value in bounds.items()]
            moved = self._add("Slice", [offsets, *slices], f"{name}_offsets")  # (N, taps, H, W)
            scale, origin = self._fixed(axis, name) if self._dims[axis] else self._free(axis, name)
            moved = self._add("Mul", [moved, scale], f"{name}_moves")
            place = self._add("Add", [moved, origin], f"{name}_places")
            parts.append(self._reshape(place, [0, self._taps, -1, 1], f"{name}_points"))
        return self._add("Concat", parts, "points", axis=3)

    def _reach(self, axis: int) -> NDArray[np.int64]:
        """How far down (or right) of its cell each tap stands: (1, taps, 1, 1), in cells."""
        place: NDArray[np.int64] = np.indices(self._kernel)[axis - _ROWS]
        return place.reshape(1, self._taps, 1, 1) - self._kernel[axis - _ROWS] // 2

    def _fixed(self, axis: int, name: str) -> tuple[str, str]:
        """Half the length of a cell, and where each tap stands without its offset, as constants.

        The middle of cell i of n is at (2 i + 1) / n - 1.
        """
        cells = self._dims[axis]
        shape = [1, 1, 1, 1]
        shape[axis] = cells
        origin = (2 * (np.arange(cells).reshape(shape) + self._reach(axis)) + 1) / cells - 1
        return (
            self._constant(np.float32(2 / cells), f"{name}_scale"),
            self._constant(origin.astype(np.float32), f"{name}_origin"),
        )

    def _free(self, axis: int, name: str) -> tuple[str, str]:
        """Compute what :meth:`_fixed` says from the size that the map turns out to have."""

        def constant(value: ArrayLike, role: str) -> str:
            return self._constant(value, f"{name}_{role}")

        def add(op_type: str, inputs: list[str], role: str, **attributes: int) -> str:
            return self._add(op_type, inputs, f"{name}_{role}", **attributes)

        two = constant(np.float32(2), "two")
        one = constant(np.float32(1), "one")
        shape = add("Shape", [self._node.input[0]], "shape", start=axis, end=axis + 1)
        count = add("Squeeze", [shape], "count")
        cells = add("Cast", [count], "cells", to=_FLOAT)
        indices = add("Range", [constant(0, "start"), count, constant(1, "by")], "range")
        place = [1, 1, 1, 1]
        place[axis] = -1
        indices = self._reshape(add("Cast", [indices], "cast", to=_FLOAT), place, f"{name}_index")
        doubled = add("Mul", [indices, two], "doubled")
        edge = constant((2 * self._reach(axis) + 1).astype(np.float32), "reach")
        share = add("Div", [add("Add", [doubled, edge], "middle"), cells], "share")
        return add("Div", [two, cells], "scale"), add("Sub", [share, one], "origin")

    def _output_shape(self, offsets: str) -> str:
        """(N, O, H, W), with -1 for O: only one side can be left to find out."""
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
        """Store float32 as it is and everything else as int64, the type of shapes."""
        array = np.asarray(value)
        array = array if array.dtype == np.float32 else array.astype(np.int64)
        name = f"{self._node.output[0]}/{name}"
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def _add(
        self, op_type: str, inputs: list[str], name: str | None, **attributes: int | str
    ) -> str:
        """Append a node; without a name it makes the output itself."""
        output = self._node.output[0] if name is None else f"{self._node.output[0]}/{name}"
        node = helper.make_node(op_type, inputs, [output], f"{output}/{op_type}")
        node.attribute.extend(
            helper.make_attribute(key, value) for key, value in attributes.items()
        )
        self._graph.node.append(node)
        return output
