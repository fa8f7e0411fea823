"""The ONNX Runtime engine over graphs made here, small enough to know every number."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.serving import make_manifest

from model_package import CenterBoxesDecoder, ModelPackage
from service.engines import EngineUnavailableError, open_engine

DECODER = CenterBoxesDecoder(output_stride=4, top_k=1, score_threshold=0.3)


def graph(factor: float) -> onnx.ModelProto:
    """Every output is the picture's mean times ``factor``; any size of picture."""
    inputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", "h", "w", 3])]
    outputs, nodes = [], [helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT)]
    nodes.append(helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0))
    nodes.append(helper.make_node("Mul", ["mean", "factor"], ["value"]))
    for spec in DECODER.outputs():
        kind = getattr(TensorProto, {"float32": "FLOAT", "int32": "INT32"}[spec.dtype])
        shape = helper.make_tensor(f"shape_{spec.name}", TensorProto.INT64, [3], [-1, 1, 1])
        columns = spec.shape[1] if len(spec.shape) > 1 else 1
        nodes += [
            helper.make_node("Constant", [], [f"{spec.name}_shape"], value=shape),
            helper.make_node("Reshape", ["value", f"{spec.name}_shape"], [f"{spec.name}_1"]),
            helper.make_node("Concat", [f"{spec.name}_1"] * columns, [f"{spec.name}_2"], axis=2),
            helper.make_node("Cast", [f"{spec.name}_2"], [f"{spec.name}_3"], to=kind),
        ]
        target = [0, *spec.shape]
        end = helper.make_tensor(f"end_{spec.name}", TensorProto.INT64, [len(target)], target)
        nodes.append(helper.make_node("Constant", [], [f"{spec.name}_end"], value=end))
        nodes.append(
            helper.make_node("Reshape", [f"{spec.name}_3", f"{spec.name}_end"], [spec.name])
        )
        outputs.append(helper.make_tensor_value_info(spec.name, kind, ["n", *spec.shape]))
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
        helper.make_tensor("factor", TensorProto.FLOAT, [], [factor]),
    ]
    made = helper.make_graph(nodes, "mean", inputs, outputs, constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture
def package(tmp_path: Path) -> ModelPackage:
    manifest = make_manifest(DECODER, flips=(False, True))
    for artifact in manifest.artifacts:
        onnx.save(graph(-1.0 if artifact.flip else 1.0), tmp_path / artifact.file)
    return ModelPackage(tmp_path, manifest)


def test_each_variant_is_an_artifact_of_its_own(package: ModelPackage) -> None:
    engine = open_engine(package, "onnxruntime-cpu", threads=1)
    images = np.stack([np.full((8, 6, 3), value, np.uint8) for value in (10, 20)])
    assert engine.run(images)["scores"].tolist() == [[10], [20]]
    assert engine.run(images, flip=True)["scores"].tolist() == [[-10], [-20]]
    assert engine.run(images[:, :4])["centers"].shape == (2, 1, 2)
    assert {name: values.dtype for name, values in engine.run(images).items()}["class_ids"] == (
        np.int32
    )


def test_a_broken_artifact_is_named(package: ModelPackage) -> None:
    (package.directory / "model_flip.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineUnavailableError, match=r"model_flip\.onnx cannot be loaded"):
        open_engine(package, "onnxruntime-cpu", threads=1)
