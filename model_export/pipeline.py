"""The export pipeline, from a checkpoint to a verified package."""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from torch import nn

from model_export.checkpoints.identify import identify
from model_export.checkpoints.load_weights import load_network
from model_export.checkpoints.mmdetection import complete_config
from model_export.checkpoints.safe_load import read_checkpoint
from model_export.class_names import flipped_pairs
from model_export.config import ExportConfig, ResolvedExport, resolve_export
from model_export.detection_graph import DetectionGraph
from model_export.networks.fp16 import Fp16Network
from model_export.onnx.export import export_onnx, max_units
from model_export.references import record_references, reference_images
from model_export.report import write_package_report
from model_export.verification.detection_agreement import verify_fp16
from model_export.verification.images import (
    ImageArray,
    drawn_scenes,
    read_images,
    synthetic_images,
)
from model_export.verification.onnx_vs_torch import (
    VerifiedImage,
    merge_verifications,
    verify_images,
)
from model_package import (
    ModelPackage,
    OnnxArtifact,
    PackageDraft,
    References,
    Verification,
    draft_package,
)
from model_package.directory import sha256_of
from model_package.onnxruntime import load_onnxruntime

ONNX_FILE = "model.onnx"
FLIP_ONNX_FILE = "model_flip.onnx"
FP16_FILES: Mapping[str, str] = {
    ONNX_FILE: "model_fp16.onnx",
    FLIP_ONNX_FILE: "model_flip_fp16.onnx",
}
"""File name of the fp16 version of each fp32 file."""

STEPS = 5
FP16_STEPS = 2
"""Calls of ``progress`` in :func:`export_package`, and further calls with fp16."""

_TOOLS = ("centernet-serving", "torch", "onnx", "onnxscript")


def export_package(
    config: ExportConfig,
    checkpoint: Path,
    output: Path,
    progress: Callable[[str], None],
    image_dir: Path | None = None,
) -> ModelPackage:
    """Export ``checkpoint`` to a package at ``output`` and verify it against the network.

    ``progress`` is called with each step as it begins; ``image_dir`` holds further images to verify
    with. Raises :class:`~model_export.errors.ExportError` and
    :class:`~model_package.PackageError`; no partial package is left behind.
    """
    with draft_package(output) as draft:
        progress(f"Read {checkpoint}")
        resolved, network = _load(config, checkpoint)
        images = collect_images(resolved, image_dir)
        graphs = {ONNX_FILE: _build_graph(network, resolved, flip=False)}
        if config.flip:
            graphs[FLIP_ONNX_FILE] = _build_graph(network, resolved, flip=True)

        parameters = sum(parameter.numel() for parameter in network.parameters())
        architecture = resolved.network.architecture
        progress(f"Export {architecture} ({parameters / 1e6:.2f} M parameters) to ONNX")
        for file, graph in graphs.items():
            _export(graph, resolved, draft.directory / file)

        progress(f"Compare PyTorch with ONNX Runtime on {len(images)} images")
        verification, verified = _verify(graphs, resolved, draft, images)

        artifacts = [draft.describe_artifact(file, flip=graphs[file].flip) for file in graphs]
        if config.precision == "fp16":
            artifacts += _add_fp16_files(network, resolved, draft, images, artifacts, progress)

        manifest = resolved.manifest(
            artifacts=tuple(artifacts),
            checkpoint_sha256=sha256_of(checkpoint),
            tools=tool_versions(),
            verification=verification,
            references=draft_references(draft, resolved, image_dir, images, verified),
        )
        progress("Measure the latency")
        write_package_report(draft.directory, manifest, verified)

        progress(f"Write {output}")
        return draft.publish(manifest)


def _add_fp16_files(
    network: nn.Module,
    resolved: ResolvedExport,
    draft: PackageDraft,
    images: list[ImageArray],
    fp32_artifacts: Sequence[OnnxArtifact],
    progress: Callable[[str], None],
) -> list[OnnxArtifact]:
    """Add an fp16 file for each of ``fp32_artifacts``; modifies ``network``."""
    progress("Export in fp16")
    fp16_network = Fp16Network(network, resolved.task.heatmaps)
    for artifact in fp32_artifacts:
        graph = _build_graph(fp16_network, resolved, artifact.flip)
        _export(graph, resolved, draft.directory / FP16_FILES[artifact.file])

    progress(f"Compare fp16 with fp32 on {len(images)} images")
    names = resolved.output_names()
    described = []
    for artifact in fp32_artifacts:
        file = FP16_FILES[artifact.file]
        paths = draft.directory / file, draft.directory / artifact.file
        agreement = verify_fp16(*paths, names, images)
        described.append(draft.describe_artifact(file, flip=artifact.flip, agreement=agreement))
    return described


def _load(config: ExportConfig, checkpoint: Path) -> tuple[ResolvedExport, nn.Module]:
    """Identify the checkpoint, resolve the configuration and load the network."""
    loaded = read_checkpoint(checkpoint, config.weights)
    if loaded.record is not None:
        config = loaded.record.complete(config)
    checkpoint_info = identify(loaded.state, config.architecture, config.task, config.ignored_heads)
    network = checkpoint_info.network
    if network.framework == "mmdetection":
        config = complete_config(config, loaded.mmdetection, network.task)
    return resolve_export(config, network), load_network(checkpoint_info, loaded.state)


def _build_graph(network: nn.Module, resolved: ResolvedExport, flip: bool) -> DetectionGraph:
    graph = DetectionGraph(
        network,
        resolved.pixel_normalization,
        resolved.task.peaks_per_heatmap or resolved.config.top_k,
        resolved.task,
        flip,
        flipped_pairs(resolved.keypoints),
    )
    return graph.eval()


def _export(graph: DetectionGraph, resolved: ResolvedExport, path: Path) -> None:
    spec = resolved.input
    names = resolved.output_names()
    stride = resolved.network.output_stride
    export_onnx(graph, spec.height_px, spec.width_px, names, path, spec.free_size, stride)


def _verify(
    graphs: Mapping[str, DetectionGraph],
    resolved: ResolvedExport,
    draft: PackageDraft,
    images: list[ImageArray],
) -> tuple[Verification, list[VerifiedImage]]:
    """Verify every file; returns the images of the first, without flip."""
    names = resolved.output_names()
    results = {
        file: verify_images(graph, draft.directory / file, names, images)
        for file, graph in graphs.items()
    }
    merged = merge_verifications({file: result[0] for file, result in results.items()})
    return merged, results[ONNX_FILE][1]


def draft_references(
    draft: PackageDraft,
    resolved: ResolvedExport,
    image_dir: Path | None,
    images: Sequence[ImageArray],
    verified: Sequence[VerifiedImage],
) -> References:
    """Record the references of a draft; see :func:`model_export.references.record_references`.

    ``images``: of the verification, which did not leave out ``verified``.
    """
    content = draft.directory / "references"
    compared = {one.index for one in verified}
    left_out = [image for index, image in enumerate(images) if index not in compared]
    recorded = reference_images(resolved.input, image_dir, left_out)
    names = resolved.output_names()
    references = record_references(draft.directory / ONNX_FILE, names, recorded, content)
    content.rename(draft.directory / references.file)
    return references


def tool_versions() -> dict[str, str]:
    """Return the versions of the packages that take part in an export."""
    return {
        **{tool: version(tool) for tool in _TOOLS},
        "onnxruntime": load_onnxruntime().__version__,
    }


def collect_images(resolved: ResolvedExport, image_dir: Path | None) -> list[ImageArray]:
    """Return verification images: synthetic ones, of two input sizes if dynamic, and real ones."""
    height_px, width_px = resolved.input.height_px, resolved.input.width_px
    images = synthetic_images(height_px, width_px) + drawn_scenes(height_px, width_px)
    if resolved.input.free_size is not None:
        free_size = resolved.input.free_size
        unit, reduction_px = free_size.multiple_px, free_size.reduction_px
        units = max_units(free_size)
        height_units, width_units = min(2, units), min(3, units)
        images += drawn_scenes(
            height_units * unit - reduction_px, width_units * unit - reduction_px
        )
    if image_dir is not None:
        images += read_images(image_dir, height_px, width_px)
    return images
