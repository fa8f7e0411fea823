"""What half precision costs, on machines that have none.

ONNX Runtime's CPU provider computes half layers in float32 and, where one follows another, leaves
out the rounding in between: values that half cannot hold would pass unseen. So the file is also
run with its rounding made explicit: all layers in float32, each result cast to half and back.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

_HALF, _FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
_EXACT, _ROUNDED = ":exact", ":rounded"
"""Ends of new names; the exporter uses none with a colon."""


def with_explicit_rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite ``model`` without half layers, so that every runtime rounds as it says.

    Layers may sum in float32 inside, as the hardware does; what they hand on is a half. Nothing
    is fused, so a real engine rounds less often. ``model`` is changed and returned.
    """
    half = _half_values(model)
    for tensor in model.graph.initializer:
        if tensor.data_type == _HALF:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    nodes = []
    for node in model.graph.node:
        rounded = [name for name in node.output if name in half]
        nodes.append(node)
        for name in rounded:
            nodes += _rounding(name)
        node.output[:] = [name + _EXACT if name in half else name for name in node.output]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]
    return model


def _half_values(model: onnx.ModelProto) -> set[str]:
    inferred = shape_inference.infer_shapes(model, data_prop=False)
    return {
        value.name
        for value in inferred.graph.value_info
        if value.type.tensor_type.elem_type == _HALF
    }


def _rounding(name: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Cast", [name + _EXACT], [name + _ROUNDED], to=_HALF),
        helper.make_node("Cast", [name + _ROUNDED], [name], to=_FLOAT),
    ]
