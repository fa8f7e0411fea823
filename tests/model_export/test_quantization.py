"""Quantization to int8: the file, the choice of float32 layers, verification and the report."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from model_export import quantize_package as quantization
from model_export.cli import main
from model_export.errors import ImagesError
from model_export.onnx.quantize import Quantizer
from model_export.verification.average_precision import (
    MAX_AP_LOSS,
    measure_average_precision,
    read_labels,
)
from model_export.verification.comparison import Detections
from model_export.verification.images import read_images
from model_export.verification.onnx_vs_torch import Run, onnx_runner
from model_package import CornerPairsDecoder, ModelPackage, OnnxArtifact, load_package
from model_package.directory import sha256_of
from service.engines import open_engine

BOXES = ("scores", "class_ids", "centers", "sizes")


@pytest.fixture(scope="module")
def trained(project: Path) -> ModelPackage:
    """A trained network: the detections of others hardly agree in any other precision."""
    return load_package(project / "models" / "blood_cells")


@pytest.fixture(scope="module")
def images(project: Path) -> Path:
    return project / "docs" / "samples"


def copy(package: ModelPackage, directory: Path) -> Path:
    shutil.copytree(package.directory, directory)
    return directory


@pytest.fixture(scope="module")
def int8_package(
    trained: ModelPackage, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> ModelPackage:
    directory = copy(trained, tmp_path_factory.mktemp("int8") / "package")
    return quantization.quantize_package(directory, images, None, lambda _: None)


def int8_artifact(package: ModelPackage) -> OnnxArtifact:
    (artifact,) = (one for one in package.manifest.artifacts if one.precision == "int8")
    assert isinstance(artifact, OnnxArtifact)
    return artifact


def constants(model: ModelProto) -> dict[str, NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def producers(model: ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def test_the_package_gets_a_verified_file(int8_package: ModelPackage) -> None:
    artifact = int8_artifact(int8_package)
    assert artifact.file == f"model_int8.{artifact.sha256[:8]}.onnx"
    report, agreement = artifact.quantization, artifact.agreement
    assert report is not None
    assert agreement is not None
    assert report.calibration_images == 4
    assert report.quantized_layers + len(report.float_layers) == 29
    assert report.average_precision is None
    assert agreement.inputs == 4 + 4
    assert agreement.matched_fraction >= 0.9
    assert agreement.worst_errors["sorted_scores"] <= agreement.tolerances["sorted_scores"]
    fp32 = int8_package.manifest.artifacts[0]
    assert artifact.size_bytes < 0.35 * fp32.size_bytes


def test_convolutions_are_int8_as_tensorrt_requires(int8_package: ModelPackage) -> None:
    artifact = int8_artifact(int8_package)
    model = onnx.load(int8_package.path_of(artifact))
    onnx.checker.check_model(model, full_check=True)
    values, producer = constants(model), producers(model)
    assert artifact.quantization is not None
    quantized = 0
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose"):
            continue
        sources = [producer.get(name) for name in node.input[:2]]
        kinds = {source.op_type if source else None for source in sources}
        if node.name in artifact.quantization.float_layers:
            assert "DequantizeLinear" not in kinds
            continue
        quantized += 1
        assert kinds == {"DequantizeLinear"}, node.name
        assert values[node.input[2]].dtype == np.float32, "the bias"
        weights = sources[1]
        assert weights is not None
        axis = {attribute.name: attribute.i for attribute in weights.attribute}["axis"]
        assert axis == (0 if node.op_type == "Conv" else 1), "output channels"
        assert values[weights.input[0]].dtype == np.int8
        assert values[weights.input[1]].shape == (values[weights.input[0]].shape[axis],)
    assert quantized == artifact.quantization.quantized_layers
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero_point = values[node.input[2]]
            assert zero_point.dtype == np.int8
            assert not zero_point.any()
    for node in model.graph.node:
        if "Conv" not in node.op_type:
            kinds = {producer[name].op_type for name in node.input if name in producer}
            assert "DequantizeLinear" not in kinds, "residual sums and maps keep float32"


@pytest.mark.parametrize("engine_name", ["openvino", "onnxruntime"])
def test_runtimes_find_nearly_the_same(
    int8_package: ModelPackage, images: Path, engine_name: str
) -> None:
    batch = np.stack(read_images(images, 288, 384))
    expected = open_engine(int8_package, "onnxruntime-cpu", threads=1).run(batch)
    if engine_name == "openvino":
        engine = open_engine(int8_package, "openvino", threads=1, precision="int8")
        outputs = engine.run(batch)
        assert engine.precision == "int8"
        assert engine.description.endswith("int8 on CPU")
    else:
        path = int8_package.path_of(int8_artifact(int8_package))
        rows = onnx_runner(path, BOXES)(batch)
        outputs = {name: np.stack([row[name] for row in rows]) for name in BOXES}
    difference = np.abs(np.sort(outputs["scores"]) - np.sort(expected["scores"])).max()
    assert 1e-4 < difference < 0.1


def test_quantizing_again_replaces_the_file_and_reports_ap(
    int8_package: ModelPackage, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = copy(int8_package, tmp_path / "package")
    calibration = tmp_path / "images"
    calibration.mkdir()
    for number in (2, 3, 4):
        shutil.copy(images / f"blood_smear_{number}.jpg", calibration)
    labels = str(images / "blood_smears.json")
    arguments = ["quantize", str(directory), "--images", str(calibration)]
    assert main([*arguments, "--evaluate", labels, str(images)]) == 0
    new = int8_artifact(load_package(directory))
    old = int8_artifact(int8_package)
    assert new.file != old.file
    assert not (directory / old.file).exists()
    assert new.quantization is not None
    precision = new.quantization.average_precision
    assert precision is not None
    assert precision.images == 4
    assert precision.fp32.keys() == precision.int8.keys() == {"all", "RBC", "WBC", "Platelets"}
    assert 0.5 < precision.fp32["all"] < 1
    assert precision.int8 != precision.fp32
    assert precision.int8["all"] > precision.fp32["all"] - MAX_AP_LOSS
    captured = capsys.readouterr()
    assert f"{directory / new.file}: " in captured.out
    assert "detections agree with fp32 in 7 images" in captured.out
    assert f"AP on 4 images: all {precision.int8['all']:.4f}" in captured.out
    assert "[1/3] Calibrate model.onnx with 3 images" in captured.err


class _Shrunk:
    """Detections of a runner with smaller boxes."""

    def __init__(self, run: Run, factor: float) -> None:
        self._run, self._factor = run, factor

    def __call__(self, images: NDArray[np.uint8]) -> list[Detections]:
        return [{**rows, "sizes": rows["sizes"] * self._factor} for rows in self._run(images)]


def test_a_loss_of_ap_is_refused(trained: ModelPackage, images: Path) -> None:
    manifest = trained.manifest
    labelled = read_labels(images / "blood_smears.json", images, manifest)
    run = onnx_runner(trained.directory / "model.onnx", BOXES)
    with pytest.raises(quantization.QuantizationError, match=r"loses too much AP: all 0\.\d{4}"):
        measure_average_precision(run, _Shrunk(run, 0.9), labelled, manifest)
    same = measure_average_precision(run, run, labelled, manifest)
    assert same.int8 == same.fp32


def test_labels_of_other_classes_are_refused(
    trained: ModelPackage, images: Path, tmp_path: Path
) -> None:
    document = json.loads((images / "blood_smears.json").read_text())
    for category in document["categories"]:
        category["name"] += "?"
    (tmp_path / "other.json").write_text(json.dumps(document))
    with pytest.raises(ImagesError, match="no labels of the classes RBC, WBC, Platelets"):
        read_labels(tmp_path / "other.json", images, trained.manifest)


def test_ap_of_corner_models_is_left_to_the_evaluation(trained: ModelPackage, images: Path) -> None:
    decoder = CornerPairsDecoder(pairs=3, top_k=2, score_threshold=0.1)
    manifest = trained.manifest.model_copy(update={"decoder": decoder})
    with pytest.raises(ImagesError, match=r"not for corner_pairs.*centernet-eval"):
        read_labels(images / "blood_smears.json", images, manifest)


def with_outliers(model: ModelProto, first: str, second: str, factor: float) -> ModelProto:
    """Multiply a channel between two convolutions, and divide its weights in the second by that.

    The function of the network is unchanged, but one scale no longer fits all channels.
    """
    nodes = {node.name: node for node in model.graph.node}

    def multiply(values: NDArray[np.float32]) -> None:
        values[0] *= factor

    def divide(values: NDArray[np.float32]) -> None:
        values[:, 0] /= factor

    changes: dict[str, Callable[[NDArray[np.float32]], None]] = {
        **dict.fromkeys(nodes[first].input[1:3], multiply),
        nodes[second].input[1]: divide,
    }
    for tensor in model.graph.initializer:
        if tensor.name in changes:
            values = numpy_helper.to_array(tensor).copy()
            changes[tensor.name](values)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


@pytest.fixture
def sensitive(trained: ModelPackage, tmp_path: Path) -> tuple[Path, str]:
    """A file whose second layer of a residual block needs float32, and the name of that layer."""
    model = onnx.load(trained.directory / "model.onnx")
    consumers = {name: node for node in model.graph.node for name in node.input}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    first = convolutions[1]
    second = consumers[consumers[first.output[0]].output[0]]
    assert second.op_type == "Conv"
    path = tmp_path / "sensitive.onnx"
    onnx.save(with_outliers(model, first.name, second.name, 1000.0), path)
    return path, second.name


def test_the_layer_that_needs_float32_is_found_by_measurement(
    sensitive: tuple[Path, str], trained: ModelPackage, images: Path
) -> None:
    path, layer = sensitive
    inputs = read_images(images, 288, 384)
    original = trained.directory / "model.onnx"
    for run in (onnx_runner(path, BOXES), onnx_runner(original, BOXES)):
        assert run(inputs[0][np.newaxis])[0]["scores"][0] > 0.1
    with Quantizer(original, inputs) as quantizer:
        before = quantizer.measure_effects(inputs)
    with Quantizer(path, inputs) as quantizer:
        effects = quantizer.measure_effects(inputs)
        assert max(effects, key=lambda name: effects[name]) == layer
        assert effects[layer] > 20 * before[layer]
        assert quantizer.select_float_layers(effects, 0.0) == []
        assert layer in quantizer.select_float_layers(effects, 0.2)
        assert set(quantizer.select_float_layers(effects, 1.0)) == set(quantizer.layers)


def test_more_layers_stay_float32_until_the_detections_agree(
    sensitive: tuple[Path, str],
    trained: ModelPackage,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, layer = sensitive
    directory = copy(trained, tmp_path / "package")
    shutil.copy(path, directory / "model.onnx")
    document = json.loads((directory / "model.json").read_text())
    document["artifacts"][0] |= {
        "sha256": sha256_of(directory / "model.onnx"),
        "size_bytes": (directory / "model.onnx").stat().st_size,
    }
    (directory / "model.json").write_text(json.dumps(document))
    before = {path.name: sha256_of(path) for path in directory.iterdir()}
    monkeypatch.setattr(quantization, "FLOAT_SHARES", (0.0,))
    with pytest.raises(quantization.QuantizationError, match=r"detections in .* images agree"):
        quantization.quantize_package(directory, images, None, lambda _: None)
    assert {path.name: sha256_of(path) for path in directory.iterdir()} == before

    monkeypatch.setattr(quantization, "FLOAT_SHARES", (0.0, 0.2))
    package = quantization.quantize_package(directory, images, None, lambda _: None)
    report = int8_artifact(package).quantization
    assert report is not None
    assert layer in report.float_layers


def test_a_package_without_references_is_refused(
    trained: ModelPackage, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = copy(trained, tmp_path / "package")
    document = json.loads((directory / "model.json").read_text())
    document["references"] = None
    (directory / "model.json").write_text(json.dumps(document))
    assert main(["quantize", str(directory), "--images", str(images)]) == 2
    assert f"centernet-export references {directory}" in capsys.readouterr().err


def test_a_file_without_convolutions_is_refused(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Identity", ["images"], ["scores"])
    image = onnx.helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 8, 8, 3])
    scores = onnx.helper.make_tensor_value_info("scores", TensorProto.UINT8, ["n", 8, 8, 3])
    graph = onnx.helper.make_graph([node], "empty", [image], [scores])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "empty.onnx")
    with pytest.raises(quantization.QuantizationError, match="no convolution"):
        Quantizer(tmp_path / "empty.onnx", [np.zeros((8, 8, 3), np.uint8)])


@pytest.mark.parametrize("damage", ["not a zip file", "another size"])
def test_damaged_references_are_refused(
    trained: ModelPackage, images: Path, tmp_path: Path, damage: str
) -> None:
    directory = copy(trained, tmp_path / "package")
    assert trained.manifest.references is not None
    path = directory / trained.manifest.references.file
    if damage == "another size":
        np.savez(path, images=np.zeros((1, 8, 8, 3), np.uint8))
    else:
        path.write_bytes(b"damaged")
    with pytest.raises(ImagesError, match="does not contain references of this model"):
        quantization.quantize_package(directory, images, None, lambda _: None)
