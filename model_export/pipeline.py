"""One export, from a checkpoint to a verified package."""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from torch import nn

from model_export.architectures import ARCHITECTURES
from model_export.checkpoints.identify import identify
from model_export.checkpoints.load_weights import load_network
from model_export.checkpoints.safe_load import read_state
from model_export.class_names import flipped_pairs
from model_export.config import ExportConfig, Plan, check_config, make_plan
from model_export.graph.detection_graph import DetectionGraph
from model_export.graph.normalization import NORMALIZATIONS
from model_export.onnx.export import export_onnx, most_units
from model_export.onnx.fp16 import HalfNetwork
from model_export.verification.detection_agreement import verify_half
from model_export.verification.images import ImageArray, read_images, synthetic_images
from model_export.verification.onnx_vs_torch import merge, verify
from model_package import (
    ModelPackage,
    OnnxArtifact,
    PackageDraft,
    Verification,
    draft_package,
)
from model_package.directory import sha256_of

ONNX_FILE = "model.onnx"
FLIP_ONNX_FILE = "model_flip.onnx"
HALF_FILES: Mapping[str, str] = {
    ONNX_FILE: "model_fp16.onnx",
    FLIP_ONNX_FILE: "model_flip_fp16.onnx",
}
"""What each file in half precision is called."""

STEPS = 4
HALF_STEPS = 2
"""How often :func:`export_package` calls ``progress``, and how often more with half precision."""

_TOOLS = ("centernet-serving", "torch", "onnx", "onnxscript", "onnxruntime")


def export_package(
    config: ExportConfig,
    checkpoint: Path,
    output: Path,
    progress: Callable[[str], None],
    image_dir: Path | None = None,
) -> ModelPackage:
    """Turn ``checkpoint`` into a package at ``output`` that detects what its network detects.

    ``progress`` is told each step as it begins; ``image_dir`` is a directory of more images to
    verify with. Raises :class:`~model_export.errors.ExportError` and
    :class:`~model_package.PackageError`; whatever is raised, no package and no draft stays behind.
    """
    check_config(config)
    with draft_package(output) as draft:
        progress(f"Read {checkpoint}")
        plan, network = _read(config, checkpoint)
        images = collect_images(plan, image_dir)
        graphs = {ONNX_FILE: _graph(network, plan, flip=False)}
        if config.flip:
            graphs[FLIP_ONNX_FILE] = _graph(network, plan, flip=True)

        parameters = sum(parameter.numel() for parameter in network.parameters())
        progress(f"Export {plan.architecture} ({parameters / 1e6:.2f} M parameters) to ONNX")
        for file, graph in graphs.items():
            _export(graph, plan, draft.directory / file)

        progress(f"Compare PyTorch with ONNX Runtime on {len(images)} images")
        verification = _verify(graphs, plan, draft, images)

        artifacts = [draft.describe_artifact(file, flip=graphs[file].flip) for file in graphs]
        if config.precision == "fp16":
            artifacts += _add_half_precision(network, plan, draft, images, artifacts, progress)

        progress(f"Write {output}")
        manifest = plan.manifest(
            artifacts=tuple(artifacts),
            checkpoint_sha256=sha256_of(checkpoint),
            tools=tool_versions(),
            verification=verification,
        )
        return draft.publish(manifest)


def _add_half_precision(
    network: nn.Module,
    plan: Plan,
    draft: PackageDraft,
    images: list[ImageArray],
    full: Sequence[OnnxArtifact],
    progress: Callable[[str], None],
) -> list[OnnxArtifact]:
    """Put a file in half precision beside each of ``full``; uses ``network`` up."""
    progress("Export in half precision")
    half_network = HalfNetwork(network, plan.task.heatmaps)
    for artifact in full:
        graph = _graph(half_network, plan, artifact.flip)
        _export(graph, plan, draft.directory / HALF_FILES[artifact.file])

    progress(f"Compare half precision with float32 on {len(images)} images")
    names = plan.output_names()
    described = []
    for artifact in full:
        file = HALF_FILES[artifact.file]
        paths = draft.directory / file, draft.directory / artifact.file
        agreement = verify_half(*paths, names, images)
        described.append(draft.describe_artifact(file, flip=artifact.flip, agreement=agreement))
    return described


def _read(config: ExportConfig, checkpoint: Path) -> tuple[Plan, nn.Module]:
    """Find out what the checkpoint is, settle what follows from it, and load it."""
    state = read_state(checkpoint)
    contents = identify(state, config.architecture, config.task)
    plan = make_plan(
        config,
        contents.architecture,
        ARCHITECTURES[contents.architecture].input_multiple,
        contents.task,
        contents.num_classes,
        contents.num_keypoints,
    )
    return plan, load_network(contents, state)


def _graph(network: nn.Module, plan: Plan, flip: bool) -> DetectionGraph:
    graph = DetectionGraph(
        network,
        NORMALIZATIONS[plan.normalization],
        plan.task.keypoint_peaks or plan.config.top_k,
        plan.task,
        flip,
        flipped_pairs(plan.keypoints),
    )
    return graph.eval()


def _export(graph: DetectionGraph, plan: Plan, path: Path) -> None:
    spec = plan.input
    names = plan.output_names()
    export_onnx(graph, spec.height_px, spec.width_px, names, path, spec.free_size)


def _verify(
    graphs: Mapping[str, DetectionGraph], plan: Plan, draft: PackageDraft, images: list[ImageArray]
) -> Verification:
    names = plan.output_names()
    return merge(
        [verify(graph, draft.directory / file, names, images) for file, graph in graphs.items()]
    )


def tool_versions() -> dict[str, str]:
    """Versions of the programs that had a part in an export."""
    return {tool: version(tool) for tool in _TOOLS}


def collect_images(plan: Plan, image_dir: Path | None) -> list[ImageArray]:
    """Make and read images to verify with, of the input's size and, if others fit, of another."""
    height_px, width_px = plan.input.height_px, plan.input.width_px
    images = synthetic_images(height_px, width_px)
    if plan.input.free_size is not None:
        free_size = plan.input.free_size
        unit, less_px = free_size.multiple_px, 1 - free_size.extra_px
        most = most_units(free_size)
        images += synthetic_images(min(2, most) * unit - less_px, min(3, most) * unit - less_px)[:2]
    if image_dir is not None:
        images += read_images(image_dir, height_px, width_px)
    return images
