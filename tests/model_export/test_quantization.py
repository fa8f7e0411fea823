"""Quantization to int8: the file, the choice of float32 layers, verification and the report."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from command_line.progress import Steps
from evaluation.evaluate import evaluate
from evaluation.local_model import LocalModel
from model_export import quantize_package as quantization
from model_export.cli import main
from model_export.errors import ImagesError, QuantizationError
from model_export.onnx import quantize as onnx_quantize
from model_export.onnx.quantize import Quantizer
from model_export.verification.ap_limits import MAX_AP_LOSS, compare_average_precisions
from model_export.verification.average_precision import (
    LabelledImages,
    measure_average_precision,
    read_labels,
)
from model_export.verification.detection_agreement import Int8Error
from model_export.verification.images import read_images
from model_export.verification.onnx_vs_torch import onnx_runner
from model_package import ModelManifest, ModelPackage, OnnxArtifact, load_package
from model_package.directory import sha256_of
from model_package.onnxruntime import load_onnxruntime
from service.engines import open_engine

ort = load_onnxruntime()

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
    return quantization.quantize_package(directory, images, None, Steps(0, quiet=True))


def inputs_of(package: ModelPackage, images: Path) -> list[NDArray[np.uint8]]:
    """Return the images in the size of the network input."""
    spec = package.manifest.input
    return read_images(images, spec.height_px, spec.width_px)


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
    assert report.average_precisions == ()
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
    batch = np.stack(inputs_of(int8_package, images))
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
    (precision,) = new.quantization.average_precisions
    assert (precision.metric, precision.images) == ("boxes", 4)
    assert precision.fp32.keys() == precision.int8.keys() == {"all", "RBC", "WBC", "Platelets"}
    assert 0.5 < precision.fp32["all"] < 1
    assert precision.int8 != precision.fp32
    annotations = json.loads((images / "blood_smears.json").read_text())["annotations"]
    assert sum(precision.objects.values()) == len(annotations)
    assert precision.int8["all"] > precision.fp32["all"] - MAX_AP_LOSS
    captured = capsys.readouterr()
    assert f"{directory / new.file}: " in captured.out
    assert "detections agree with fp32 in 7 images" in captured.out
    assert f"AP of boxes on 4 images: all {precision.int8['all']:.4f}" in captured.out
    assert "[1/6] Calibrate model.onnx with 3 images" in captured.err
    report = (directory / "report.html").read_text("utf-8")
    assert new.sha256 in report, "of the new file"
    assert old.sha256 not in report
    assert precision.objects["RBC"] >= 50 > precision.objects["WBC"]
    assert "not limited, with fewer than 50 objects: " in captured.out
    assert "AP of boxes, 4 images" in report
    assert "fewer than 50 objects" in report


METRICS = {
    "blood_cells": ("blood_smears.json", ".", {"boxes"}),
    "people": ("people/people.json", "people", {"boxes", "poses"}),
    "road_vehicles": (
        *("road_scenes/label_2", "road_scenes/image_2"),
        {"boxes", "boxes_3d", "boxes_3d_low_iou"},
    ),
}
"""Labels, images and metrics of the bundled models."""


def bundled_labels(project: Path, name: str) -> tuple[ModelPackage, LabelledImages]:
    package = load_package(project / "models" / name)
    annotations, directory, _ = METRICS[name]
    samples = project / "docs" / "samples"
    return package, read_labels(samples / annotations, samples / directory, package.manifest)


@pytest.mark.parametrize("name", METRICS)
def test_ap_is_that_of_the_evaluation_for_all_metrics_of_the_task(project: Path, name: str) -> None:
    package, labelled = bundled_labels(project, name)
    content = (package.directory / "model.onnx").read_bytes()
    measured = measure_average_precision(content, package.manifest, labelled)
    assert measured.keys() == METRICS[name][2]
    source = LocalModel(package.directory, backend="onnxruntime-cpu", precision="fp32")
    ground_truth = labelled.ground_truth
    run = source.detect(ground_truth.images, lambda: None)
    metrics = evaluate(
        source.model, ground_truth, run, source.model.tasks[-1], labelled.sigmas
    ).metrics
    for metric, aps in measured.items():
        if metric in ("boxes", "poses"):
            expected = {name: one[0] for name, one in metrics[metric]["per_class"].items()}
            assert aps == {"all": metrics[metric]["all"]["AP"], **expected}
        else:
            at = {"Car": "0.7", "Van": "0.5"} if metric == "boxes_3d" else CAR_AND_VAN_LOW
            expected = {name: metrics["kitti"][name][iou]["3D"][1] for name, iou in at.items()}
            assert aps == {"all": sum(expected.values()) / 2, **expected}
    assert measured["boxes"]["all"] > 0.5


CAR_AND_VAN_LOW = {"Car": "0.5", "Van": "0.25"}


def with_factor(content: bytes, output: str, factor: float) -> bytes:
    """Multiply an output of a graph."""
    model = onnx.load_from_string(content)
    for node in model.graph.node:
        node.output[:] = ["unscaled" if name == output else name for name in node.output]
        node.input[:] = ["unscaled" if name == output else name for name in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["unscaled", "factor"], [output]))
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("name", "output", "factor", "metric"),
    [
        ("blood_cells", "sizes", 0.8, "boxes"),
        ("people", "keypoints", 0.97, "poses"),
        ("road_vehicles", "depths", 1.2, "boxes_3d_low_iou"),
    ],
)
def test_a_loss_of_ap_is_refused(
    project: Path, name: str, output: str, factor: float, metric: str
) -> None:
    package, labelled = bundled_labels(project, name)
    content = (package.directory / "model.onnx").read_bytes()
    before, after = (
        measure_average_precision(one, package.manifest, labelled)
        for one in (content, with_factor(content, output, factor))
    )
    with pytest.raises(
        QuantizationError, match=rf"loses too much AP: .*{metric} of all 0\.\d{{4}}"
    ):
        compare_average_precisions(before, after, 4, {})
    unchanged = before.keys() - {metric, *(("boxes_3d",) if name == "road_vehicles" else ())}
    assert all(after[one] == before[one] for one in unchanged), "the other metrics do not change"
    for one in compare_average_precisions(before, before, 4, {}):
        assert one.int8 == one.fp32 == before[one.metric]


def test_the_loss_of_all_classes_and_of_one_have_their_limits() -> None:
    def compare(overall: float, one_class: float, objects: int = 50) -> None:
        fp32, int8 = (
            {"boxes": {"all": 0.5, "cell": 0.5}},
            {"boxes": {"all": overall, "cell": one_class}},
        )
        compare_average_precisions(fp32, int8, 1, {"cell": objects})

    compare(0.4901, 0.4801)
    compare(0.6, 0.6)
    compare(0.4901, 0.1, objects=49)
    with pytest.raises(QuantizationError, match="one with 50 or more objects"):
        compare(0.4899, 0.5, objects=49)
    for values in ((0.4899, 0.5), (0.5, 0.4799), (float("nan"), 0.5)):
        with pytest.raises(QuantizationError, match="loses too much AP"):
            compare(*values)


def test_labels_that_do_not_fit_the_model_are_refused(
    project: Path, images: Path, tmp_path: Path
) -> None:
    def manifest(name: str) -> ModelManifest:
        return load_package(project / "models" / name).manifest

    document = json.loads((images / "blood_smears.json").read_text())
    for category in document["categories"]:
        category["name"] += "?"
    other_classes = tmp_path / "other.json"
    other_classes.write_text(json.dumps(document))
    with pytest.raises(ImagesError, match=r"RBC\?.* which the model does not have"):
        read_labels(other_classes, images, manifest("blood_cells"))
    with pytest.raises(ImagesError, match="labels have only 2D boxes"):
        read_labels(images / "blood_smears.json", images, manifest("road_vehicles"))
    with pytest.raises(ImagesError, match="labels have no keypoints"):
        read_labels(images / "blood_smears.json", images, manifest("people"))
    with pytest.raises(ImagesError, match="4 of 4 images are missing"):
        read_labels(images / "blood_smears.json", tmp_path, manifest("blood_cells"))


def test_keypoints_without_sigmas_are_refused(project: Path, tmp_path: Path) -> None:
    directory = project / "docs" / "samples" / "people"
    document = json.loads((directory / "people.json").read_text())
    for label in document["annotations"]:
        label["keypoints"] = label["keypoints"][:6]
    labels = tmp_path / "two_keypoints.json"
    labels.write_text(json.dumps(document))
    manifest = load_package(project / "models" / "people").manifest
    changes = {"keypoints": ("nose", "left_eye"), "skeleton": ()}
    manifest = manifest.model_copy(update={"decoder": manifest.decoder.model_copy(update=changes)})
    with pytest.raises(ImagesError, match="no sigmas for the 2 keypoints"):
        read_labels(labels, directory, manifest)


def test_labels_without_objects_are_refused(
    trained: ModelPackage, images: Path, tmp_path: Path
) -> None:
    document = json.loads((images / "blood_smears.json").read_text())
    document["annotations"] = []
    (tmp_path / "empty.json").write_text(json.dumps(document))
    labelled = read_labels(tmp_path / "empty.json", images, trained.manifest)
    content = (trained.directory / "model.onnx").read_bytes()
    with pytest.raises(ImagesError, match="no object that counts for the AP of boxes"):
        measure_average_precision(content, trained.manifest, labelled)


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


def network_with_uneven_channels(operator: str, path: Path) -> None:
    """Write a pointwise convolution, one of groups and a pointwise one; pixels are the input.

    The ranges of the channels between them differ by factors up to 10,000. ``operator`` is that of
    the groups, of two channels each for a transposed convolution, else of one.
    """
    helper, random = onnx.helper, np.random.default_rng(5)
    groups, per_group = (8, 1) if operator == "Conv" else (4, 2)
    ranges = np.logspace(-2, 2, 8).astype(np.float32)
    wide = random.uniform(0.1, 1, (8, 3, 1, 1)).astype(np.float32) * ranges.reshape(-1, 1, 1, 1)
    grouped = random.normal(size=(8, per_group, 3, 3)).astype(np.float32)
    grouped /= ranges.reshape(-1, 1, 1, 1)
    constants = {
        "wide": wide / 255,
        "grouped": grouped,
        "biases": random.normal(size=8).astype(np.float32),
        "narrow": random.normal(size=(2, 8, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["first", "wide"], ["second"], name="first"),
        helper.make_node(
            operator,
            ["second", "grouped", "biases"],
            ["third"],
            name="grouped",
            group=groups,
            pads=[1] * 4,
        ),
        helper.make_node("Conv", ["third", "narrow"], ["scores"], name="last"),
    ]
    graph = helper.make_graph(
        nodes,
        "uneven",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 16, 16, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2, 16, 16])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def values_of(
    model: ModelProto, name: str, images: Sequence[NDArray[np.uint8]]
) -> NDArray[np.float32]:
    """Return a value of a graph for ``images``, (images, channels, height, width)."""
    extended = ModelProto()
    extended.CopyFrom(model)
    extended.graph.output.append(onnx.ValueInfoProto(name=name))
    session = ort.InferenceSession(extended.SerializeToString())
    values: NDArray[np.float32] = session.run([name], {"images": np.stack(images)})[0]
    return values


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_channels_of_different_ranges_are_divided_before_a_convolution(
    operator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "uneven.onnx"
    network_with_uneven_channels(operator, path)
    random = np.random.default_rng(6)
    images = list(random.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8))
    expected = values_of(onnx.load(path), "third", images)

    def error_of(model: ModelProto) -> float:
        changes = values_of(model, "third", images) - expected
        return float(np.square(changes).mean() / expected.var())

    model = Quantizer(path, images).quantize(["grouped"])
    onnx.checker.check_model(model, full_check=True)
    values, producer = constants(model), producers(model)
    (node,) = (node for node in model.graph.node if node.name == "grouped")
    rounding = producer[producer[node.input[0]].input[0]]
    assert values[rounding.input[1]].shape == (), "one scale, as TensorRT requires"
    division = producer[rounding.input[0]]
    assert division.op_type == "Mul"
    assert values[division.input[1]].shape == (1, 8, 1, 1)
    monkeypatch.setattr(onnx_quantize, "_SMOOTHING", ())
    undivided = Quantizer(path, images).quantize(["grouped"])
    assert "Mul" not in {node.op_type for node in undivided.graph.node}
    assert error_of(model) < 1e-3 < 0.1 < error_of(undivided)


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_mean_errors_are_subtracted_from_the_biases(operator: str, tmp_path: Path) -> None:
    path = tmp_path / "uneven.onnx"
    network_with_uneven_channels(operator, path)
    random = np.random.default_rng(6)
    images = list(random.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8))

    quantizer = Quantizer(path, images)
    # The second layer has biases, the last has none.
    layers = {"grouped": "third", "last": "scores"}

    def largest_mean_error(layer: str) -> float:
        expected = values_of(onnx.load(path), layers[layer], images)
        found = values_of(quantizer.quantize([layer]), layers[layer], images)
        return float(np.abs((found - expected).mean((0, 2, 3))).max() / expected.std())

    before = {layer: largest_mean_error(layer) for layer in layers}
    measured: list[None] = []
    quantizer.correct_means(images, lambda: measured.append(None))
    assert len(measured) == len(images)
    for layer in layers:
        assert before[layer] > 1e-4
        assert largest_mean_error(layer) < before[layer] / 50


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
    # Above the ratio of the ranges that factors of the channels make equal.
    onnx.save(with_outliers(model, first.name, second.name, 1e8), path)
    return path, second.name


def test_the_layer_that_needs_float32_is_found_by_measurement(
    sensitive: tuple[Path, str], trained: ModelPackage, images: Path
) -> None:
    path, layer = sensitive
    inputs = inputs_of(trained, images)
    original = trained.directory / "model.onnx"
    for run in (onnx_runner(path, BOXES), onnx_runner(original, BOXES)):
        assert run(inputs[0][np.newaxis])[0]["scores"][0] > 0.1
    measured = {"images": 0, "layers": 0}

    def count(name: str) -> None:
        measured[name] += 1

    def measure_effects(file: Path) -> tuple[Quantizer, dict[str, float]]:
        error_of = Int8Error(file, trained.manifest.decoder, inputs[:2])
        quantizer = Quantizer(file, inputs, lambda: count("images"))
        return quantizer, quantizer.measure_effects(error_of, lambda: count("layers"))

    quantizer, before = measure_effects(original)
    assert measured == {"images": len(inputs), "layers": len(quantizer.layers)}
    assert 0 < max(before.values()) < 0.2
    quantizer, effects = measure_effects(path)
    assert max(effects, key=lambda name: effects[name]) == layer
    assert effects[layer] > 20 * before[layer]
    assert effects[layer] > 0.5, "most of the largest possible error"
    assert quantizer.select_float_layers(effects, 0.0) == []
    assert layer in quantizer.select_float_layers(effects, 0.2)
    assert set(quantizer.select_float_layers(effects, 1.0)) == set(quantizer.layers)


def test_images_without_detections_measure_no_effect(trained: ModelPackage) -> None:
    images = [np.zeros((384, 512, 3), np.uint8)]
    with pytest.raises(QuantizationError, match=r"finds nothing with a score from 0\.3"):
        Int8Error(trained.directory / "model.onnx", trained.manifest.decoder, images)


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
    with pytest.raises(QuantizationError, match="detections with a score from"):
        quantization.quantize_package(directory, images, None, Steps(0, quiet=True))
    assert {path.name: sha256_of(path) for path in directory.iterdir()} == before

    monkeypatch.setattr(quantization, "FLOAT_SHARES", (0.0, 0.2))
    package = quantization.quantize_package(directory, images, None, Steps(0, quiet=True))
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
    with pytest.raises(QuantizationError, match="no convolution"):
        Quantizer(tmp_path / "empty.onnx", [np.zeros((8, 8, 3), np.uint8)])


def test_files_like_imported_ones_are_quantized(tmp_path: Path) -> None:
    """Sizes of layers cannot be inferred, here after a reshape, and a domain is listed twice."""
    helper = onnx.helper
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["transposed"], perm=[0, 3, 1, 2]),
        helper.make_node("Shape", ["transposed"], ["shape"]),
        helper.make_node("Mul", ["shape", "once"], ["computed"]),
        helper.make_node("Reshape", ["transposed", "computed"], ["reshaped"]),
        helper.make_node("Conv", ["reshaped", "wide"], ["first"], name="wide", strides=[2, 2]),
        helper.make_node("Conv", ["first", "narrow"], ["scores"], name="narrow"),
    ]
    weights = {
        "wide": np.ones((8, 3, 1, 1), np.float32),
        "narrow": np.ones((1, 8, 1, 1), np.float32),
    }
    constants = {**weights, "once": np.ones(4, np.int64)}
    graph = helper.make_graph(
        nodes,
        "computed",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 8, 16, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    path = tmp_path / "computed.onnx"
    opsets = [helper.make_opsetid("", 20)] * 2
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    quantizer = Quantizer(path, [np.zeros((8, 16, 3), np.uint8)])
    # Multiplications: 24 and 8 in each of 4 x 8 cells.
    effects = {"wide": 1.0, "narrow": 0.1}
    assert quantizer.select_float_layers(effects, 0.26) == ["narrow"]
    assert quantizer.select_float_layers(effects, 0.24) == []
    assert quantizer.select_float_layers(effects, 0.76) == ["wide"]
    quantized = quantizer.quantize(["wide"])
    assert [node.op_type for node in quantized.graph.node].count("QuantizeLinear") == 1


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
        quantization.quantize_package(directory, images, None, Steps(0, quiet=True))
