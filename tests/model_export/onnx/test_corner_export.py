"""Export of corner models: input sizes, corner pooling functions and verification."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from labels.outputs import Outputs, split_kinds
from model_export.config import ExportConfig, NetworkInfo, ResolvedExport, resolve_export
from model_export.detection_graph import DetectionGraph
from model_export.errors import VerificationError
from model_export.graph.normalization import NORMALIZATIONS
from model_export.key_mappings.key_mapping import Framework
from model_export.networks import squeeze
from model_export.networks.corner_blocks import PoolingBlock
from model_export.networks.corner_networks import KeypointNetwork, corner_net_pooling
from model_export.networks.corner_pooling import BOTTOM_RIGHT, TOP_LEFT
from model_export.networks.hourglass import (
    RESIDUAL_LAYERS,
    HourglassLayers,
    StackedHourglass,
)
from model_export.onnx.export import export_onnx
from model_export.pipeline import collect_images
from model_export.tasks import TASKS
from model_export.verification.comparison import compare
from model_export.verification.onnx_vs_torch import verify

CLASSES = 3
TASK = "corner_triplets"


class SmallNetwork(nn.Module):
    """The heads of *Keypoint Triplets* on a backbone of two convolutions with 16 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 16, 7, stride=2, padding=3), nn.Conv2d(16, 16, 3, stride=2, padding=1)
        )
        self.top_left = PoolingBlock(16, TOP_LEFT)
        self.bottom_right = PoolingBlock(16, BOTTOM_RIGHT)
        self.heads = nn.ModuleDict(
            {
                name: nn.Conv2d(16, head.count(CLASSES, 0), 3, padding=1)
                for name, head in TASKS[TASK].heads.items()
            }
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.backbone(images)
        features = features + self.top_left(features) + self.bottom_right(features)
        return {name: head(features) for name, head in self.heads.items()}


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[DetectionGraph, ResolvedExport, Path]:
    torch.manual_seed(11)
    config = ExportConfig(name="small", version="1", classes=("a", "b", "c"))
    resolved = resolve_export(config, NetworkInfo("none", TASK, CLASSES, input_multiple=128))
    assert resolved.task.peaks_per_heatmap is not None
    graph = DetectionGraph(
        SmallNetwork(), NORMALIZATIONS["coco"], resolved.task.peaks_per_heatmap, resolved.task
    ).eval()
    path = tmp_path_factory.mktemp("corners") / "model.onnx"
    export_onnx(graph, 511, 511, resolved.output_names(), path, resolved.input.free_size)
    return graph, resolved, path


def test_the_file_agrees_with_the_network_at_every_size(
    exported: tuple[DetectionGraph, ResolvedExport, Path],
) -> None:
    graph, resolved, path = exported
    generator = np.random.default_rng(2)
    images = [
        generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for height, width in ((127, 127), (127, 255), (383, 127), (127, 1023))
    ]
    verification = verify(graph, path, resolved.output_names(), images)
    assert verification.matched_fraction > 0.9
    assert set(verification.worst_errors) == {"scores", "boxes", "corner_scores", "centers"}


def test_outputs_match_the_decoder_spec(
    exported: tuple[DetectionGraph, ResolvedExport, Path],
) -> None:
    _, resolved, path = exported
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"images": np.zeros((3, 127, 255, 3), np.uint8)})
    for output, spec in zip(outputs, resolved.decoder().outputs(), strict=True):
        assert output.shape == (3, *spec.shape)
        assert output.dtype == spec.dtype


def test_pooling_windows_cover_the_largest_map(
    exported: tuple[DetectionGraph, ResolvedExport, Path],
) -> None:
    model = onnx.load(exported[2])
    assert {function.name: _windows(function) for function in model.functions} == {
        "corner_pool_top_left_sum": [[256, 1], [1, 256]],
        "corner_pool_bottom_right_sum": [[256, 1], [1, 256]],
    }


@pytest.mark.parametrize(
    ("framework", "output_stride", "levels", "layers", "max_side_px"),
    [
        ("authors", 4, 6, RESIDUAL_LAYERS, 127),
        ("authors", 4, 6, RESIDUAL_LAYERS, 255),
        ("cornernet_lite", 8, 5, squeeze.LAYERS, 255),
    ],
)
def test_the_smallest_input_size_can_be_exported(
    tmp_path: Path,
    framework: Framework,
    output_stride: int,
    levels: int,
    layers: HourglassLayers,
    max_side_px: int,
) -> None:
    """The innermost map has one cell, which the exporter would take for a constant."""
    torch.manual_seed(3)
    config = ExportConfig(
        name="small",
        version="1",
        classes=("a", "b", "c"),
        width_px=127,
        height_px=127,
        max_side_px=max_side_px,
    )
    info = NetworkInfo(
        "none",
        "corner_pairs",
        CLASSES,
        input_multiple=128,
        output_stride=output_stride,
        framework=framework,
    )
    resolved = resolve_export(config, info)
    assert resolved.task.peaks_per_heatmap is not None
    heads = resolved.task.head_channels({}, CLASSES, 0)
    backbone = StackedHourglass(1, (8,) * levels, (1,) * levels, layers)
    network = KeypointNetwork(backbone, corner_net_pooling(8), 8, heads, dict.fromkeys(heads, 8))
    if framework == "cornernet_lite":  # without training, features of fire modules hardly vary
        _normalize_features(network)
    graph = DetectionGraph(
        network, NORMALIZATIONS["coco"], resolved.task.peaks_per_heatmap, resolved.task
    ).eval()
    export_onnx(
        graph,
        127,
        127,
        resolved.output_names(),
        tmp_path / "model.onnx",
        resolved.input.free_size,
        output_stride,
    )
    for function in onnx.load(tmp_path / "model.onnx").functions:
        assert max(_windows(function)[0]) == (max_side_px + 1) // output_stride
    images = collect_images(resolved, None)
    sizes = {image.shape for image in images}
    assert sizes == {(127, 127, 3), (255 if max_side_px > 127 else 127, max_side_px, 3)}
    verify(graph, tmp_path / "model.onnx", resolved.output_names(), images)


def _normalize_features(network: nn.Module) -> None:
    """Measure the statistics of batch normalization, so that features and scores vary."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # those of all batches
    with torch.no_grad():
        network.train()(torch.rand(4, 3, 127, 127))


def _windows(function: onnx.FunctionProto) -> list[list[int]]:
    return [
        list(entry.ints)
        for node in function.node
        for entry in node.attribute
        if entry.name == "kernel_shape"
    ]


def _outputs(scores: list[float], boxes: list[list[float]] | None = None) -> Outputs:
    count = len(scores)
    boxes_in_a_row = [[4.0 * row, 2.0, 4.0 * row + 3, 9.0] for row in range(count)]
    return {
        "scores": np.array(scores, np.float32),
        "class_ids": np.zeros(count, np.int32),
        "boxes": np.array(boxes_in_a_row if boxes is None else boxes, np.float32),
        "corner_scores": np.full((count, 2), 0.5, np.float32),
    }


def _shuffled(outputs: Outputs) -> dict[str, NDArray]:
    return {name: values[::-1] for name, values in outputs.items()}


def test_pairs_are_matched_in_any_order() -> None:
    reference = _outputs([0.9, 0.8, -1.0])
    comparison = compare(reference, _shuffled(reference), "image 0")
    assert (comparison.matched, comparison.total) == (2, 2)
    assert comparison.worst_errors == {"scores": 0.0, "boxes": 0.0, "corner_scores": 0.0}


def test_impossible_pairs_are_not_compared() -> None:
    elsewhere = _outputs([0.9, -1.0], [[0.0, 2.0, 3.0, 9.0], [70.0, 70.0, 71.0, 71.0]])
    assert compare(_outputs([0.9, -1.0]), elsewhere, "image 0").matched == 1


def test_a_few_pairs_may_be_possible_on_one_side_only() -> None:
    scores = [0.9 - 0.01 * row for row in range(40)]
    reference = _outputs(scores)
    assert compare(reference, _outputs([*scores[:-2], -1.0, -1.0]), "image 0").matched == 38
    with pytest.raises(VerificationError, match="does not find 3 detections"):
        compare(reference, _outputs([*scores[:-3], -1.0, -1.0, -1.0]), "image 0")


def test_different_corners_are_an_error() -> None:
    reference = _outputs([0.9, 0.8, 0.7])
    shifted = {**reference, "boxes": reference["boxes"] + np.float32(0.01)}
    with pytest.raises(VerificationError):
        compare(reference, shifted, "image 0")
    corner_scores = reference["corner_scores"] + np.float32(0.01)
    with pytest.raises(VerificationError, match="corner_scores differ"):
        compare(reference, {**reference, "corner_scores": corner_scores}, "image 0")


def test_centers_are_compared_separately() -> None:
    centers = {
        "centers": np.array([[1.0, 2.0], [5.0, 6.0]], np.float32),
        "center_scores": np.array([0.7, 0.6], np.float32),
        "center_class_ids": np.array([0, 1], np.int32),
    }
    outputs = {**_outputs([0.9, 0.8, -1.0]), **centers}
    pairs, alone = split_kinds(outputs)
    assert pairs["scores"].tolist() == pytest.approx([0.9, 0.8, 0.0])
    assert alone["class_ids"].tolist() == [0, 1]
    assert compare(outputs, outputs, "image 0").matched == 4
    moved = {**outputs, "center_class_ids": np.array([2, 1], np.int32)}
    with pytest.raises(VerificationError, match="does not find 1 detections"):
        compare(outputs, moved, "image 0")
