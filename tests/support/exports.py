"""Exports for parity tests, in a fraction of the time."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from torch import nn

from model_export import pipeline
from model_export.config import ExportConfig, ResolvedExport
from model_export.onnx.export import export_onnx
from model_export.pipeline import export_package
from model_export.verification.images import ImageArray, read_images
from model_package import FreeSize, ModelPackage

_SAMPLES = Path(__file__).parents[2] / "docs/samples/people"


def export_for_parity(
    config: ExportConfig, checkpoint: Path, directory: Path, *, one_size: bool
) -> ModelPackage:
    """Export a checkpoint, verified with one sample; other tests verify with all images.

    ``one_size``: without the dynamic size of corner models, which takes twice as long.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "collect_images", _one_sample)
        if one_size:
            patch.setattr(pipeline, "export_onnx", _export_one_size)
        return export_package(config, checkpoint, directory, lambda _: None)


def _one_sample(resolved: ResolvedExport, _: Path | None) -> list[ImageArray]:
    return read_images(_SAMPLES, resolved.input.height_px, resolved.input.width_px)[:1]


def _export_one_size(
    graph: nn.Module,
    height_px: int,
    width_px: int,
    output_names: Sequence[str],
    path: Path,
    _: FreeSize | None,
    output_stride: int,
) -> None:
    export_onnx(graph, height_px, width_px, output_names, path, output_stride=output_stride)
