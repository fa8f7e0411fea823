"""Packages to build engines from, and the fake TensorRT libraries to build them with."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from model_export.engines.build import BuiltEngine, EngineRequest, build_engines
from model_package import (
    CenterBoxesDecoder,
    EngineArtifact,
    FreeSize,
    InputSpec,
    ModelManifest,
    ModelPackage,
    OnnxArtifact,
    Provenance,
    Verification,
    draft_package,
    load_package,
)
from model_package.directory import sha256_of

ROOT = Path(__file__).parents[2]
FAKES = ROOT / "tests" / "model_export" / "engines" / "fake_libraries"
VERIFICATION = Verification(
    reference="nothing: made for a test",
    inputs=1,
    tolerances={},
    worst_errors={},
    matched_fraction=0.0,
)
ADA = EngineRequest(backend="tensorrt-rtx", compute_capability="8.9", precision="fp32")
FULL = EngineRequest(backend="tensorrt")
FREE = FreeSize(multiple_px=32, extra_px=1, max_side_px=100)


def tiny_graph(producer: str = "", operator: str = "Cast", domain: str = "") -> bytes:
    """Serialise a graph of one node; the producer selects how the fake libraries behave."""
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", "H", "W", 3])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", "H", "W", 3])
    attributes = {"to": TensorProto.FLOAT} if operator == "Cast" else {}
    node = helper.make_node(
        operator, ["images"], ["scores"], name="/first", domain=domain, **attributes
    )
    opsets = [helper.make_opsetid("", 20)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    graph = helper.make_graph([node], "tiny", [images], [scores])
    model = helper.make_model(graph, opset_imports=opsets, producer_name=producer)
    return bytes(model.SerializeToString())


def deform_graph() -> bytes:
    """Serialise a graph with one deformable convolution."""
    node = helper.make_node(
        "DeformConv",
        ["images", "weight", "offsets"],
        ["scores"],
        kernel_shape=[3, 3],
        pads=[1, 1, 1, 1],
    )
    tensors = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", channels, 8, 8])
        for name, channels in {"images": 1, "offsets": 18, "scores": 2}.items()
    }
    weight = numpy_helper.from_array(np.ones((2, 1, 3, 3), np.float32), "weight")
    output = tensors.pop("scores")
    graph = helper.make_graph([node], "deform", list(tensors.values()), [output], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    return bytes(model.SerializeToString())


def write_package(
    directory: Path,
    files: dict[str, bytes],
    input_spec: InputSpec | None = None,
    decoder: Any = None,
) -> ModelPackage:
    """Publish a package of ONNX files; precision and flip follow from the file names."""
    with draft_package(directory) as draft:
        artifacts = []
        for name, content in files.items():
            path = draft.directory / name
            path.write_bytes(content)
            half = "fp16" in name
            artifacts.append(
                OnnxArtifact(
                    file=name,
                    precision="fp16" if half else "fp32",
                    flip="flip" in name,
                    sha256=sha256_of(path),
                    size_bytes=path.stat().st_size,
                    agreement=VERIFICATION if half else None,
                )
            )
        manifest = ModelManifest(
            name="tiny",
            version="1",
            description="",
            classes=("a",),
            input=input_spec or InputSpec(width_px=96, height_px=64),
            decoder=decoder or CenterBoxesDecoder(output_stride=4, top_k=1, score_threshold=0.1),
            artifacts=tuple(artifacts),
            provenance=Provenance(
                architecture="none",
                checkpoint_sha256="0" * 64,
                source="tests",
                license="none",
                normalization="none",
                tools={},
            ),
            verification=VERIFICATION,
        )
        return draft.publish(manifest)


def start_build(
    package: Path, *options: str, libraries: Path | None = FAKES, **variables: str
) -> "subprocess.Popen[str]":
    """Start ``centernet-export build`` as the leader of a process group, as a shell does.

    ``variables`` are added to its environment.
    """
    paths = [str(ROOT), *([str(libraries)] if libraries else []), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-m", "model_export", "build", str(package), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | variables,
        process_group=0,
    )


def contents(directory: Path) -> dict[str, bytes]:
    """Return the content of every file, including hidden files, by name."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def engines_of(directory: Path) -> list[EngineArtifact]:
    """Return the engines of a valid package."""
    artifacts = load_package(directory).manifest.artifacts
    return [artifact for artifact in artifacts if isinstance(artifact, EngineArtifact)]


def settings_of(package: Path, engine: EngineArtifact) -> dict[str, Any]:
    """Return the build settings that a fake library writes into an engine."""
    return json.loads((package / engine.file).read_bytes())


class RecordingObserver:
    """Records the events of a build."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.fractions: list[float] = []
        self.built: list[BuiltEngine] = []
        self.removed_files: list[str] = []

    def removed(self, engine: EngineArtifact) -> None:
        self.removed_files.append(engine.file)

    def started(self, number: int, count: int, step: str) -> None:
        self.steps.append(f"{number}/{count} {step}")

    def progress(self, fraction: float, phase: str) -> None:
        assert phase
        self.fractions.append(fraction)

    def finished(self, engine: BuiltEngine) -> None:
        self.built.append(engine)


def build(directory: Path, request: EngineRequest) -> RecordingObserver:
    """Build the engines and return the recorded events."""
    observer = RecordingObserver()
    build_engines(directory, request, observer)
    return observer
