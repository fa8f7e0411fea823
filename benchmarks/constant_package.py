"""Packages whose engine costs nothing or little, to measure everything else in the service."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from model_export.pipeline import ONNX_FILE
from model_package import draft_package
from service.detector import load_detector
from service.options import DetectParameters

_SIZE = 256
"""Rows and columns of the matrices of a layer, which takes 34 million operations per image."""


@contextmanager
def constant_package(package: Path, image: Path, layers: int = 0) -> Iterator[Path]:
    """Create a package like ``package`` that returns the outputs for ``image`` for every image.

    ``layers``: number of matrix products that the engine calculates for each image before.
    """
    with load_detector(package, backend="onnxruntime-cpu") as detector:
        manifest = detector.manifest
        options = detector.rules.complete(DetectParameters()).inputs
        prepared = detector.preprocess(detector.open_image(image.read_bytes()), options)
        outputs = detector.engine.run(np.stack([part.pixels for part in prepared.inputs]))
    images = helper.make_tensor_value_info("images", helper.TensorProto.UINT8, ["N", "H", "W", 3])
    nodes = [helper.make_node("Shape", ["images"], ["count"], end=1)]
    constants, infos = [], []
    for name, values in outputs.items():
        constants += [
            numpy_helper.from_array(values, f"{name}/row"),
            numpy_helper.from_array(np.array(values.shape[1:], np.int64), f"{name}/rest"),
        ]
        nodes += [
            helper.make_node("Concat", ["count", f"{name}/rest"], [f"{name}/shape"], axis=0),
            helper.make_node("Expand", [f"{name}/row", f"{name}/shape"], [name]),
        ]
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        infos.append(helper.make_tensor_value_info(name, kind, ["N", *values.shape[1:]]))
    if layers:
        _add_layers(nodes, constants, layers)
    graph = helper.make_graph(nodes, "constant", [images], infos, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with TemporaryDirectory() as folder, draft_package(Path(folder, "constant")) as draft:
        (draft.directory / ONNX_FILE).write_bytes(model.SerializeToString())
        artifact = draft.describe_artifact(ONNX_FILE)
        changes = {"artifacts": (artifact,), "references": None}
        yield draft.publish(manifest.model_copy(update=changes)).directory


def _add_layers(nodes: list[NodeProto], constants: list[TensorProto], layers: int) -> None:
    """Add work to the graph, and to its scores the result, which is zero."""
    for node in nodes:
        node.output[:] = ["constant_scores" if name == "scores" else name for name in node.output]
    constants += [
        numpy_helper.from_array(np.full((_SIZE, _SIZE), 1 / _SIZE, np.float32), "weights"),
        numpy_helper.from_array(np.array([1, _SIZE, _SIZE], np.int64), "size"),
        numpy_helper.from_array(np.array([1, 2, 3], np.int64), "image_axes"),
        numpy_helper.from_array(np.array([2, 3], np.int64), "layer_axes"),
        numpy_helper.from_array(np.float32(0), "zero"),
    ]
    nodes += [
        helper.make_node("ReduceMax", ["images", "image_axes"], ["maximum"]),
        helper.make_node("Cast", ["maximum"], ["value"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["count", "size"], ["layer_shape"], axis=0),
        helper.make_node("Expand", ["value", "layer_shape"], ["layer_0"]),
    ]
    for layer in range(layers):
        inputs, outputs = [f"layer_{layer}", "weights"], [f"layer_{layer + 1}"]
        nodes.append(helper.make_node("MatMul", inputs, outputs))
    nodes += [
        helper.make_node("ReduceMin", [f"layer_{layers}", "layer_axes"], ["minimum"], keepdims=0),
        helper.make_node("Min", ["minimum", "zero"], ["result"]),
        helper.make_node("Add", ["constant_scores", "result"], ["scores"]),
    ]
