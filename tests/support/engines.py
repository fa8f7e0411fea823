"""Packages for all backends whose outputs are the mean of the image times a factor."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from model_package import (
    CenterBoxesDecoder,
    InputSpec,
    ModelManifest,
    ModelPackage,
    OnnxArtifact,
    Quantization,
    Verification,
)
from model_package.manifest import BatchProfile, EngineArtifact, EngineRequirements
from service.engines import Engine
from support.fake_tensorrt import serialized_plan
from support.serving import make_manifest

DECODER = CenterBoxesDecoder(output_stride=4, top_k=1, score_threshold=0.3)
INPUT = InputSpec(width_px=64, height_px=64)
DIGEST = "0" * 64
_FACTORS = {"fp32": 1, "fp16": 2, "int8": 3}


def mean_graph(factor: float) -> onnx.ModelProto:
    """Return a graph for images of any size, with outputs that are their mean times ``factor``."""
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


def engine_artifact(file: str = "model.engine", **overrides: Any) -> EngineArtifact:
    """Return a TensorRT 10.9 engine for compute capability 8.9, with fields replaced."""
    requires = {"version": "10.9.0.34", "compute_capability": "8.9", "gpu": None}
    requires |= {name: overrides.pop(name) for name in tuple(overrides) if name in requires}
    fields: dict[str, Any] = {
        "file": file,
        "precision": "fp32",
        "sha256": DIGEST,
        "size_bytes": 1,
        "backend": "tensorrt",
        "built_from": DIGEST,
        "requires": EngineRequirements(**requires),
        "batch": BatchProfile(opt=4, max=8),
        "tf32": False,
    }
    return EngineArtifact(**(fields | overrides))


def half_precision_artifact(flip: bool = False) -> OnnxArtifact:
    agreement = Verification(
        reference="fp32", inputs=1, tolerances={}, worst_errors={}, matched_fraction=1.0
    )
    return OnnxArtifact(
        file=f"half{'_flip' * flip}.onnx",
        precision="fp16",
        flip=flip,
        sha256="1" * 64,
        size_bytes=1,
        agreement=agreement,
    )


def int8_artifact() -> OnnxArtifact:
    fields = half_precision_artifact().model_dump() | {"file": "int8.onnx", "precision": "int8"}
    report = Quantization(
        tool="ONNX Runtime", calibration_images=1, quantized_layers=1, float_layers=()
    )
    return OnnxArtifact(**(fields | {"sha256": "2" * 64, "quantization": report}))


def make_package(
    directory: Path,
    more: Sequence[OnnxArtifact | EngineArtifact] = (),
    flips: tuple[bool, ...] = (False,),
    input_spec: InputSpec = INPUT,
    **plan_fields: Any,
) -> ModelPackage:
    """Write a package of fp32 ONNX files and ``more``; ``plan_fields`` go into its engines.

    The factor is 1; negated with flip, doubled in fp16 and tripled in int8, to show which file was
    run.
    """
    manifest = make_manifest(DECODER, input_spec, flips)
    fields = manifest.model_dump() | {"artifacts": (*manifest.artifacts, *more)}
    manifest = ModelManifest.model_validate(fields)
    for artifact in manifest.artifacts:
        factor = (-1.0 if artifact.flip else 1.0) * _FACTORS[artifact.precision]
        path = directory / artifact.file
        if isinstance(artifact, OnnxArtifact):
            onnx.save(mean_graph(factor), path)
        else:
            sizes = artifact.batch.min, artifact.batch.opt, artifact.batch.max
            path.write_bytes(serialized_plan(DECODER, factor, **({"batch": sizes} | plan_fields)))
    return ModelPackage(directory, manifest)


def make_images(*values: int, height_px: int = 64, width_px: int = 64) -> NDArray[np.uint8]:
    """Return one image per value, filled with that value."""
    return np.stack([np.full((height_px, width_px, 3), value, np.uint8) for value in values])


def check_concurrent_runs(engine: Engine) -> None:
    """Run the engine in three threads; each must get the rows of its own images."""
    results: dict[int, list[list[float]]] = {}

    def run(first: int) -> None:
        for _ in range(20):
            results[first] = engine.run(make_images(first, first + 1))["scores"].tolist()

    threads = [threading.Thread(target=run, args=(10 * index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {first: [[first], [first + 1]] for first in (0, 10, 20)}
