"""Import of external ONNX files that map preprocessed pixels to undecoded head maps."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model_export.architectures import OBJECTS_AS_POINTS_TASKS, OUTPUT_STRIDE
from model_export.checkpoints.identify import closest_task
from model_export.config import ExportConfig, NetworkInfo, ResolvedExport, resolve_export
from model_export.detection_graph import DetectionGraph
from model_export.errors import ConfigError, OnnxFileError
from model_export.graph.normalization import Normalization
from model_export.onnx.compose import EXAMPLE_BATCH, compose_detector, to_layout
from model_export.onnx.export import write_onnx
from model_export.onnx.external_model import ExternalModel, read_external_model
from model_export.pipeline import ONNX_FILE, collect_images, draft_references, tool_versions
from model_export.report import write_package_report
from model_export.tasks import TASKS
from model_export.verification.onnx_vs_torch import verify_images
from model_package import (
    ModelManifest,
    ModelPackage,
    PackageDraft,
    References,
    Verification,
    draft_package,
)
from model_package.directory import sha256_of
from model_package.onnxruntime import load_onnxruntime

ort = load_onnxruntime()


def import_package(
    config: ExportConfig,
    onnx_file: Path,
    normalization: Normalization,
    output: Path,
    progress: Callable[[str], None],
    image_dir: Path | None = None,
) -> ModelPackage:
    """Add pixel normalization and head decoding to the network in ``onnx_file`` and package it.

    ``normalization`` is the pixel scaling that the network was trained with. The package is
    verified against the original file, which runs one image at a time. ``progress`` is called with
    each step as it begins; ``image_dir`` holds further images to verify with. Raises
    :class:`~model_export.errors.ExportError` and :class:`~model_package.PackageError`; no partial
    package is left behind.
    """
    if config.precision != "fp32":
        raise ConfigError(
            f"an imported file cannot be converted to {config.precision}: fp16 needs the layers of "
            "a PyTorch network. Import it in fp32, or export its checkpoint."
        )
    with draft_package(output) as draft:
        progress(f"Read {onnx_file}")
        external = read_external_model(onnx_file)
        network = OnnxNetwork(onnx_file, external)
        resolved, maps = _resolve(config, external, network, normalization)
        images = collect_images(resolved, image_dir)

        progress("Add pixel normalization before the network and head decoding after it")
        model = compose_detector(external, resolved, normalization, maps)
        write_onnx(model, draft.directory / ONNX_FILE)
        _check_batches(draft.directory / ONNX_FILE, resolved)

        progress(f"Compare the original file with the new one on {len(images)} images")
        reference = DetectionGraph(network, normalization, config.top_k, resolved.task).eval()
        names = resolved.output_names()
        verification, verified = verify_images(
            reference, draft.directory / ONNX_FILE, names, images
        )

        references = draft_references(draft, resolved, image_dir, images, verified)
        manifest = _manifest(draft, resolved, onnx_file, verification, references)
        progress("Measure the latency")
        write_package_report(draft.directory, manifest, verified)

        progress(f"Write {output}")
        return draft.publish(manifest)


def _manifest(
    draft: PackageDraft,
    resolved: ResolvedExport,
    onnx_file: Path,
    verification: Verification,
    references: References,
) -> ModelManifest:
    return resolved.manifest(
        artifacts=(draft.describe_artifact(ONNX_FILE),),
        checkpoint_sha256=sha256_of(onnx_file),
        tools=tool_versions(),
        verification=verification.model_copy(
            update={"reference": f"ONNX Runtime {ort.__version__} on the imported file, CPU"}
        ),
        references=references,
    )


class OnnxNetwork(nn.Module):
    """The external file as a network: float32 (N, 3, H, W) to raw maps by head."""

    def __init__(self, onnx_file: Path, external: ExternalModel) -> None:
        super().__init__()
        self._external = external
        try:
            self._session = ort.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise OnnxFileError(
                f"ONNX Runtime cannot load {onnx_file}: {str(error)[:300]}."
            ) from error

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Run the images one by one, since the file may have a fixed batch size of 1."""
        pixels = to_layout(images, self._external.layout)
        rows = [self._run(pixels[index : index + 1]) for index in range(len(pixels))]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _run(self, image: Tensor) -> dict[str, Tensor]:
        outputs = self._session.run(
            list(self._external.heads.values()),
            {self._external.input_name: image.contiguous().numpy()},
        )
        return {
            name: torch.from_numpy(values)
            for name, values in zip(self._external.heads, outputs, strict=True)
        }


def _resolve(
    config: ExportConfig,
    external: ExternalModel,
    network: OnnxNetwork,
    normalization: Normalization,
) -> tuple[ResolvedExport, dict[str, Tensor]]:
    """Resolve the configuration from a trial run; also returns the maps of a black image."""
    by_name = closest_task(dict.fromkeys(external.heads, 1), OBJECTS_AS_POINTS_TASKS)
    width_px, height_px = TASKS[config.task or by_name].size_px
    width_px = external.width_px or config.width_px or width_px
    height_px = external.height_px or config.height_px or height_px
    try:
        with torch.inference_mode():
            maps = network(torch.zeros(1, 3, height_px, width_px))
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise OnnxFileError(
            f"the network does not run on an input of {width_px}x{height_px}: {str(error)[:300]}."
        ) from error
    channels = {name: values.shape[1] for name, values in maps.items()}
    task_name = config.task or closest_task(channels, OBJECTS_AS_POINTS_TASKS)
    resolved = resolve_export(
        _with_input(config, width_px, height_px, normalization),
        NetworkInfo(
            "imported",
            task_name,
            num_classes=channels.get(TASKS[task_name].classes_head, 1),
            num_keypoints=channels.get("keypoint_offsets", 0) // 2,
        ),
    )
    expected = resolved.task.head_channels(channels, len(resolved.classes), len(resolved.keypoints))
    cells = (height_px // OUTPUT_STRIDE, width_px // OUTPUT_STRIDE)
    _check_maps(maps, expected, cells)
    return resolved, {name: maps[name] for name in expected}


def _with_input(
    config: ExportConfig, width_px: int, height_px: int, normalization: Normalization
) -> ExportConfig:
    return replace(config, width_px=width_px, height_px=height_px, normalization=normalization)


def _check_maps(
    maps: Mapping[str, Tensor], expected: Mapping[str, int], cells: tuple[int, int]
) -> None:
    for name, channels in expected.items():
        shape = (1, channels, *cells)
        found = tuple(maps[name].shape) if name in maps else "none"
        if found != shape:
            raise OnnxFileError(
                f"the head {name} must have the shape {shape}, but the file has {found}. "
                "Choose another --task, or export the head maps at a quarter of the input's size."
            )


def _check_batches(onnx_file: Path, resolved: ResolvedExport) -> None:
    """Raise if the composed file cannot run a batch: some networks have a fixed batch size."""
    session = ort.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    spec = resolved.input
    images = np.zeros((EXAMPLE_BATCH, spec.height_px, spec.width_px, 3), np.uint8)
    problem = OnnxFileError(
        "the network has a fixed batch size. Export it again with a dynamic batch axis."
    )
    try:
        outputs = session.run(None, {"images": images})
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise problem from error
    if any(len(rows) != len(images) for rows in outputs):
        raise problem
