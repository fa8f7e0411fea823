"""Composition of an imported network with pixel normalization and head decoding."""

from collections.abc import Mapping, Sequence

import onnx
import torch
from onnx import compose, version_converter
from torch import Tensor, nn

from model_export.config import ResolvedExport
from model_export.errors import OnnxFileError
from model_export.graph.heads import activate
from model_export.graph.normalization import Normalization, PixelNormalization
from model_export.onnx.export import OPSET, dynamic_batch, to_onnx
from model_export.onnx.external_model import ExternalModel, Layout
from model_export.tasks import Task

EXAMPLE_BATCH = 2
"""Batch size of example inputs; with 1, the exporter would take the axis for a constant."""

_PREPROCESS, _NETWORK, _DECODE = "preprocess/", "network/", "decode/"
"""Prefixes of the names from each part, so that they cannot clash."""


def compose_detector(
    external: ExternalModel,
    resolved: ResolvedExport,
    normalization: Normalization,
    maps: Mapping[str, Tensor],
) -> onnx.ModelProto:
    """Merge normalization, network and decoding: uint8 (N, H, W, 3) to the decoder's outputs.

    ``maps`` are raw maps of the network by head, for their shapes. Raises :class:`OnnxFileError`
    if the network's operators cannot be converted to :data:`~model_export.onnx.export.OPSET`.
    """
    preprocess = _export_preprocessing(external, resolved, normalization)
    decode = _export_decoding(resolved, maps)
    network = _with_dynamic_batch(external, [external.heads[name] for name in maps])
    network.ir_version = preprocess.ir_version  # merge_models requires equal versions
    merged = compose.merge_models(
        compose.add_prefix(preprocess, _PREPROCESS, rename_inputs=False),
        compose.add_prefix(network, _NETWORK),
        io_map=[(f"{_PREPROCESS}pixels", f"{_NETWORK}{external.input_name}")],
    )
    return compose.merge_models(
        merged,
        compose.add_prefix(decode, _DECODE, rename_outputs=False),
        io_map=[(f"{_NETWORK}{external.heads[name]}", f"{_DECODE}{name}") for name in maps],
    )


def to_layout(images: Tensor, layout: Layout) -> Tensor:
    """Convert (N, 3, H, W) to ``layout``."""
    return images if layout == "nchw" else images.permute(0, 2, 3, 1)


class _Preprocessing(nn.Module):
    """Converts uint8 RGB (N, H, W, 3) to the float32 input of the network, in its layout."""

    def __init__(self, normalization: Normalization, layout: Layout) -> None:
        super().__init__()
        self.normalize = PixelNormalization(normalization)
        self.layout = layout

    def forward(self, images: Tensor) -> Tensor:
        """Return float32 (N, 3, H, W) or (N, H, W, 3)."""
        return to_layout(self.normalize(images), self.layout)


class _HeadDecoding(nn.Module):
    """Decodes a list of raw maps, in the order of ``heads``, to the task's outputs."""

    def __init__(self, task: Task, heads: Sequence[str], top_k: int) -> None:
        super().__init__()
        self.task = task
        self.heads = tuple(heads)
        self.top_k = top_k

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, ...]:
        """Decode ``maps``, float32 (N, C, H, W) each."""
        raw = dict(zip(self.heads, maps, strict=True))
        return self.task.decode(activate(raw, self.task.heads), self.top_k)


def _export_preprocessing(
    external: ExternalModel, resolved: ResolvedExport, normalization: Normalization
) -> onnx.ModelProto:
    spec = resolved.input
    images = torch.zeros(EXAMPLE_BATCH, spec.height_px, spec.width_px, 3, dtype=torch.uint8)
    module = _Preprocessing(normalization, external.layout)
    return to_onnx(module, (images,), ["images"], ["pixels"], (dynamic_batch(),))


def _export_decoding(resolved: ResolvedExport, maps: Mapping[str, Tensor]) -> onnx.ModelProto:
    batch = dynamic_batch()
    return to_onnx(
        _HeadDecoding(resolved.task, list(maps), resolved.config.top_k),
        ([values.expand(EXAMPLE_BATCH, -1, -1, -1).clone() for values in maps.values()],),
        list(maps),
        resolved.output_names(),
        ([batch] * len(maps),),
    )


def _with_dynamic_batch(external: ExternalModel, outputs: Sequence[str]) -> onnx.ModelProto:
    """Convert the network to :data:`OPSET` with only ``outputs`` and a dynamic batch axis."""
    try:
        model = version_converter.convert_version(external.model, OPSET)
    except Exception as error:  # the converter raises RuntimeError, among others
        raise OnnxFileError(
            f"the network's operators cannot be converted to opset {OPSET}: {str(error)[:300]}."
        ) from error
    graph = model.graph
    del graph.value_info[:]
    kept = [entry for entry in graph.output if entry.name in outputs]
    del graph.output[:]
    graph.output.extend(kept)
    for entry in [*graph.input, *graph.output]:
        if entry.name == external.input_name or entry.name in outputs:
            entry.type.tensor_type.shape.dim[0].dim_param = "batch"
    return model
