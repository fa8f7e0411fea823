"""A package whose graph returns the same outputs for every image."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_package import InputSpec, ModelPackage
from support.builds import write_package


def write_constant_package(
    directory: Path, rows: Mapping[str, NDArray[Any]], decoder: Any, input_spec: InputSpec
) -> ModelPackage:
    """Publish a package of one class, ``a``; ``rows`` are the outputs without the batch axis."""
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", "H", "W", 3])
    nodes = [helper.make_node("Shape", ["images"], ["count"], end=1)]
    constants, outputs = [], []
    for name, row in rows.items():
        rest = np.array(row.shape, np.int64)
        constants += [
            numpy_helper.from_array(row[None], f"{name}/row"),
            numpy_helper.from_array(rest, f"{name}/rest"),
        ]
        nodes += [
            helper.make_node("Concat", ["count", f"{name}/rest"], [f"{name}/shape"], axis=0),
            helper.make_node("Expand", [f"{name}/row", f"{name}/shape"], [name]),
        ]
        kind = TensorProto.FLOAT if row.dtype == np.float32 else TensorProto.INT32
        outputs.append(helper.make_tensor_value_info(name, kind, ["N", *row.shape]))
    graph = helper.make_graph(nodes, "constant", [images], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return write_package(directory, {"model.onnx": model.SerializeToString()}, input_spec, decoder)
