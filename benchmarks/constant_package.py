"""Packages whose engine costs nothing, to measure everything else in the service."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from onnx import helper, numpy_helper

from model_export.pipeline import ONNX_FILE
from model_package import draft_package
from service.detector import load_detector
from service.options import DetectParameters


@contextmanager
def constant_package(package: Path, image: Path) -> Iterator[Path]:
    """Create a package like ``package`` that returns the outputs for ``image`` for every image."""
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
    graph = helper.make_graph(nodes, "constant", [images], infos, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with TemporaryDirectory() as folder, draft_package(Path(folder, "constant")) as draft:
        (draft.directory / ONNX_FILE).write_bytes(model.SerializeToString())
        artifact = draft.describe_artifact(ONNX_FILE)
        changes = {"artifacts": (artifact,), "references": None}
        yield draft.publish(manifest.model_copy(update=changes)).directory
