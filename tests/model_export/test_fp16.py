"""Export to fp16: types of layers and weights, range checks and agreement with fp32."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, shape_inference
from torch import Tensor, nn

from model_export import pipeline
from model_export.architectures import ARCHITECTURES, ResNetArchitecture
from model_export.cli import main
from model_export.config import ExportConfig, NetworkInfo, resolve_export
from model_export.detection_graph import DetectionGraph
from model_export.errors import ConfigError, Fp16Error
from model_export.graph.normalization import NORMALIZATIONS, Normalization
from model_export.import_onnx import import_package
from model_export.networks.center_point import PredictionHead
from model_export.networks.corner_blocks import PoolingBlock
from model_export.networks.corner_pooling import BOTTOM_RIGHT, TOP_LEFT
from model_export.networks.deformable import DeformableConvolution
from model_export.networks.fp16 import Fp16Network, fold_normalization
from model_export.networks.resnet import BasicBlock
from model_export.networks.squeeze import FireModule
from model_export.onnx.export import dynamic_batch, export_onnx, to_onnx
from model_export.pipeline import export_package
from model_export.tasks import TASKS
from model_export.verification.detection_agreement import compare_fp16, verify_fp16
from model_export.verification.fp16_rounding import with_explicit_rounding
from model_export.verification.images import synthetic_images
from model_export.verification.onnx_vs_torch import onnx_runner
from model_package import ModelPackage, load_package

FP16, FP32 = TensorProto.FLOAT16, TensorProto.FLOAT
BOXES = ("scores", "class_ids", "centers", "sizes")


@pytest.fixture(scope="module")
def fp16_package(
    slim_state: dict[str, Tensor],
    slim_config: ExportConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> ModelPackage:
    directory = tmp_path_factory.mktemp("fp16")
    checkpoint = directory / "slim.pth"
    torch.save(slim_state, checkpoint)
    config = replace(slim_config, precision="fp16", flip=True, max_side_px=320)
    return export_package(config, checkpoint, directory / "package", lambda _: None)


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every value."""
    graph = shape_inference.infer_shapes(model).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _types_of(model: onnx.ModelProto, op_type: str) -> set[int]:
    """Return the element types of inputs and outputs of all operators of this type."""
    types = _types(model)
    return {
        types[name]
        for node in model.graph.node
        if node.op_type == op_type
        for name in [*node.input, *node.output]
        if name
    }


def test_fp16_files_are_added_to_the_package(fp16_package: ModelPackage) -> None:
    assert load_package(fp16_package.directory) == fp16_package
    artifacts = {artifact.file: artifact for artifact in fp16_package.manifest.artifacts}
    assert {file: (one.precision, one.flip) for file, one in artifacts.items()} == {
        "model.onnx": ("fp32", False),
        "model_flip.onnx": ("fp32", True),
        "model_fp16.onnx": ("fp16", False),
        "model_flip_fp16.onnx": ("fp16", True),
    }
    for fp32, fp16 in (("model", "model_fp16"), ("model_flip", "model_flip_fp16")):
        agreement = artifacts[f"{fp16}.onnx"].agreement
        assert agreement is not None
        assert agreement.reference.startswith(f"{fp32}.onnx, fp32, ONNX Runtime ")
        assert agreement.matched_fraction >= 0.99
        assert agreement.inputs == 8  # two of another size
        assert 1e-6 < agreement.worst_errors["scores"] < agreement.tolerances["scores"]
        sizes = artifacts[f"{fp16}.onnx"].size_bytes, artifacts[f"{fp32}.onnx"].size_bytes
        assert sizes[0] < 0.55 * sizes[1]


@pytest.mark.parametrize("file", ["model_fp16.onnx", "model_flip_fp16.onnx"])
def test_only_the_network_is_fp16(fp16_package: ModelPackage, file: str) -> None:
    model = onnx.load(fp16_package.directory / file)
    onnx.checker.check_model(model, full_check=True)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("network."):
            last = tensor.name.startswith("network.network.heads.heatmap.2.")
            assert tensor.data_type == (FP32 if last else FP16), tensor.name
        else:
            assert tensor.data_type != FP16, tensor.name
    for op_type in ("Sigmoid", "TopK", "GatherElements", "Equal"):
        assert _types_of(model, op_type)
        assert FP16 not in _types_of(model, op_type), op_type
    assert _types_of(model, "ConvTranspose") == {FP16}
    assert not _types_of(model, "BatchNormalization")
    fp32 = onnx.load(fp16_package.directory / file.replace("_fp16", ""))
    assert FP16 not in _types(fp32).values()
    readers = {node.op_type for node in model.graph.node if "images" in node.input}
    assert readers == {"Cast", "Shape"}  # height and width are dynamic


def test_fp16_files_accept_every_input_size(fp16_package: ModelPackage) -> None:
    run = onnx_runner(fp16_package.directory / "model_fp16.onnx", BOXES)
    for detections in run(np.zeros((3, 64, 320, 3), np.uint8)):
        for spec in fp16_package.manifest.decoder.outputs():
            assert detections[spec.name].shape == spec.shape
            assert detections[spec.name].dtype == spec.dtype


def test_the_command_reports_the_agreement(
    slim_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["package", "--checkpoint", str(slim_checkpoint), "--output", str(tmp_path / "out")]
    arguments += ["--classes", "a,b,c", "--input-size", "160x96", "--top-k", "50"]
    assert main([*arguments, "--precision", "fp16"]) == 0
    captured = capsys.readouterr()
    assert "model_fp16.onnx agrees with fp32: " in captured.out
    assert "[7/7] Write" in captured.err
    assert "[4/7] Export in fp16" in captured.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("conv1.weight", 1e6), r"conv1.weight has weights of up to .* holds at most 65504"),
        # In range by itself, but not after folding of batch normalization.
        (("layer1.0.bn1.weight", 1e7), r"backbone.layer1.0.conv1.weight has weights of up to"),
        (("layer1.0.bn1.bias", 1e8), r"backbone.layer1.0.conv1.bias has weights of up to"),
    ],
)
def test_weights_outside_of_the_fp16_range_are_rejected(
    slim_state: dict[str, Tensor],
    slim_config: ExportConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: tuple[str, float],
    message: str,
) -> None:
    key, factor = change
    torch.save({**slim_state, key: slim_state[key] * factor}, tmp_path / "large.pth")
    # The detections of such a network do not matter here.
    monkeypatch.setattr(pipeline, "export_onnx", lambda *arguments: arguments[4].write_bytes(b"x"))
    monkeypatch.setattr(pipeline, "_verify", lambda *_: (None, []))
    with pytest.raises(Fp16Error, match=message) as caught:
        export_package(
            replace(slim_config, precision="fp16"),
            tmp_path / "large.pth",
            tmp_path / "out",
            lambda _: None,
        )
    assert caught.value.code == "half_precision_unsuitable"
    assert {path.name for path in tmp_path.iterdir()} == {"large.pth"}


class _Shifted(Fp16Network):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = super().forward(images)
        return {**maps, "size": maps["size"] * 1.05}


def test_an_fp16_file_that_differs_is_not_published(
    slim_checkpoint: Path,
    slim_config: ExportConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "Fp16Network", _Shifted)
    with pytest.raises(Fp16Error, match=r"^only .* detections "):
        export_package(
            replace(slim_config, precision="fp16"),
            slim_checkpoint,
            tmp_path / "out",
            lambda _: None,
        )
    assert {path.name for path in tmp_path.iterdir()} == {"slim.pth"}


def test_other_precisions_are_rejected(
    slim_config: ExportConfig, slim_network: NetworkInfo, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"no precision 'int8'. Accepted: fp32, fp16"):
        resolve_export(replace(slim_config, precision="int8"), slim_network)
    normalization = Normalization((0.0,) * 3, (1.0,) * 3)
    with pytest.raises(ConfigError, match="an imported file cannot be converted to fp16"):
        import_package(
            replace(slim_config, precision="fp16"),
            tmp_path / "absent.onnx",
            normalization,
            tmp_path / "out",
            lambda _: None,
        )
    assert list(tmp_path.iterdir()) == []


def test_nan_and_infinity_are_refused() -> None:
    outputs = {
        "scores": np.array([0.5], np.float32),
        "class_ids": np.zeros(1, np.int32),
        "centers": np.ones((1, 2), np.float32),
        "sizes": np.ones((1, 2), np.float32),
    }
    assert compare_fp16(outputs, outputs).matched == 1
    for value in (np.nan, np.inf):
        with pytest.raises(Fp16Error, match="NaN or infinity"):
            compare_fp16(outputs, {**outputs, "sizes": np.full((1, 2), value, np.float32)})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_batch_normalization_is_folded(name: str) -> None:
    architecture = ARCHITECTURES[name]
    heads = TASKS[architecture.tasks[0]].heads
    with torch.device("meta"):
        network = architecture.build({name: head.count(3, 0) for name, head in heads.items()})
        fold_normalization(network.eval())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_a_normalization_is_folded_into_concatenated_convolutions() -> None:
    torch.manual_seed(4)
    network = nn.Sequential(nn.Conv2d(3, 8, 1), FireModule(8, 8), FireModule(8, 16, stride=2))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.running_var, module.weight, module.bias):
                nn.init.uniform_(values, 0.5, 1.5)
    images = torch.rand(1, 3, 16, 16)
    with torch.inference_mode():
        expected = network.eval()(images)
        fold_normalization(network)
        folded = network(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(folded, expected, rtol=1e-4, atol=1e-5)


def _tiny_deformable() -> nn.Module:
    """A ResNet with deformable convolutions whose offsets are about half a cell."""
    torch.manual_seed(5)
    network = ResNetArchitecture(
        BasicBlock,
        (1, 1, 1, 1),
        widths=(8, 8, 16, 16),
        neck_channels=(16, 16, 16),
        neck_convolution=DeformableConvolution,
        head_hidden_channels=16,
    ).build({"heatmap": 3, "size": 2, "offset": 2})
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
        elif name.endswith("offsets_and_mask"):
            nn.init.normal_(module.weight, std=0.05)
    nn.init.normal_(network.get_parameter("heads.heatmap.2.weight"), std=0.5)
    nn.init.constant_(network.get_parameter("heads.size.2.bias"), 8.0)
    return network.eval()


class _TinyCorners(nn.Module):
    """The heads of *Keypoint Triplets* on a backbone with 16 channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 16, 7, stride=2, padding=3), nn.Conv2d(16, 16, 3, stride=2, padding=1)
        )
        self.top_left = PoolingBlock(16, TOP_LEFT)
        self.bottom_right = PoolingBlock(16, BOTTOM_RIGHT)
        self.heads = nn.ModuleDict(
            {
                name: PredictionHead(16, 16, head.count(3, 0))
                for name, head in TASKS["corner_triplets"].heads.items()
            }
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.backbone(images)
        features = features + self.top_left(features) + self.bottom_right(features)
        return {name: head(features) for name, head in self.heads.items()}


def _export_both(
    network: nn.Module, task_name: str, directory: Path, size: tuple[int, int]
) -> tuple[list[str], Path, Path]:
    """Export to both precisions; returns output names, the fp32 file and the fp16 file."""
    resolved = resolve_export(
        ExportConfig(name="tiny", version="1", classes=("a", "b", "c")),
        NetworkInfo("none", task_name, 3, input_multiple=32 if task_name == "boxes" else 128),
    )
    names = resolved.output_names()
    top_k = resolved.task.peaks_per_heatmap or 100
    paths = directory / "fp32.onnx", directory / "fp16.onnx"
    for path in paths:
        if path.stem == "fp16":
            network = Fp16Network(network, resolved.task.heatmaps)
        graph = DetectionGraph(network, NORMALIZATIONS["coco"], top_k, resolved.task).eval()
        export_onnx(graph, *size, names, path, resolved.input.free_size)
    return names, *paths


def test_deformable_convolutions_sample_in_float32(tmp_path: Path) -> None:
    names, fp32, fp16 = _export_both(_tiny_deformable(), "boxes", tmp_path, (96, 128))
    model = onnx.load(fp16)
    assert _types_of(model, "DeformConv") == {FP32}
    assert _types_of(model, "Sigmoid") == {FP32}
    convolutions = [node for node in model.graph.node if node.op_type == "DeformConv"]
    assert len(convolutions) == 3
    types = _types(model)
    predicted = [name for name in types if "offsets_and_mask.weight" in name]
    assert {types[name] for name in predicted} == {FP16}
    images = synthetic_images(96, 128)
    assert verify_fp16(fp16, fp32, names, images).matched_fraction >= 0.99


def test_corner_pools_run_in_fp16(tmp_path: Path) -> None:
    names, fp32, fp16 = _export_both(_TinyCorners().eval(), "corner_triplets", tmp_path, (511, 511))
    model = onnx.load(fp16)
    pools = {node.op_type for node in model.graph.node if node.op_type.startswith("corner_pool")}
    assert len(pools) == len(model.functions) == 2
    for pool in pools:
        assert _types_of(model, pool) == {FP16}
    images = [image for size in ((127, 255), (383, 127)) for image in synthetic_images(*size)[1:3]]
    agreement = verify_fp16(fp16, fp32, names, images)
    assert agreement.matched_fraction >= 0.99
    assert set(agreement.worst_errors) == {"overlap", "scores", "corner_scores", "centers"}


class _Overflowing(nn.Module):
    """A network with small outputs whose intermediate results overflow fp16."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        )
        self.heads = nn.ModuleDict(
            {name: PredictionHead(8, 8, count) for name, count in (("heatmap", 3), ("size", 2))}
        )
        with torch.no_grad():
            for layer, factor in zip(self.backbone, (500, 500, 1 / 500, 1 / 500), strict=True):
                layer.weight.mul_(factor)
                layer.bias.zero_()
            self.heads["size"][-1].bias.fill_(8.0)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.backbone(images)
        return {name: head(features) for name, head in self.heads.items()}


def test_overflow_between_layers_is_detected(tmp_path: Path) -> None:
    names, fp32, fp16 = _export_both(_Overflowing().eval(), "boxes", tmp_path, (96, 128))
    images = synthetic_images(96, 128)[:3]
    # ONNX Runtime's CPU provider omits the rounding, so that the unchanged file shows no error.
    runs = [onnx_runner(file, names)(images[0][np.newaxis])[0] for file in (fp32, fp16)]
    assert compare_fp16(*runs).matched_fraction >= 0.95
    with pytest.raises(Fp16Error, match="detections"):
        verify_fp16(fp16, fp32, names, images)


def test_explicit_rounding_matches_numpy() -> None:
    class Chain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.to(torch.float16)
            return ((x + 1) * 300).to(torch.float32)

    x = np.float32([[0.1], [2.0**-12], [300.0]])
    model = to_onnx(Chain(), (torch.from_numpy(x),), ["x"], ["y"], (dynamic_batch(),))
    with np.errstate(over="ignore"):
        expected = ((x.astype(np.float16) + np.float16(1)) * np.float16(300)).astype(np.float32)
    session = ort.InferenceSession(
        with_explicit_rounding(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected)
    assert np.isinf(expected[2])
