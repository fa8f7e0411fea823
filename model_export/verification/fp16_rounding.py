"""Emulation of fp16 rounding on CPUs.

ONNX Runtime's CPU provider computes fp16 layers in float32 and omits the rounding between
consecutive layers, so that overflows go unnoticed. The file is therefore also run with explicit
rounding: all layers in float32, each result cast to fp16 and back.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

_FP16, _FP32 = TensorProto.FLOAT16, TensorProto.FLOAT
_EXACT, _ROUNDED = ":exact", ":rounded"
"""Suffixes of new names; the exporter uses no colons."""


def with_explicit_rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite ``model`` to float32 layers with casts to fp16 and back after each of them.

    Layers may accumulate in float32, as the hardware does; their outputs are rounded to fp16. No
    layers are fused, so a real engine rounds less often. Modifies and returns ``model``.
    """
    fp16_values = _fp16_values(model)
    for tensor in model.graph.initializer:
        if tensor.data_type == _FP16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    nodes = []
    for node in model.graph.node:
        rounded = [name for name in node.output if name in fp16_values]
        nodes.append(node)
        for name in rounded:
            nodes += _rounding(name)
        node.output[:] = [name + _EXACT if name in fp16_values else name for name in node.output]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]
    return model


def _fp16_values(model: onnx.ModelProto) -> set[str]:
    inferred = shape_inference.infer_shapes(model, data_prop=False)
    return {
        value.name
        for value in inferred.graph.value_info
        if value.type.tensor_type.elem_type == _FP16
    }


def _rounding(name: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Cast", [name + _EXACT], [name + _ROUNDED], to=_FP16),
        helper.make_node("Cast", [name + _ROUNDED], [name], to=_FP32),
    ]
