"""Export of a PyTorch module to a single portable ONNX file."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from model_export.architectures import OUTPUT_STRIDE
from model_export.onnx.corner_pool_functions import add_corner_pool_functions
from model_package import FreeSize

OPSET = 20
MAX_BATCH = 64
"""Upper bound of the dynamic batch axis for the exporter; engines have their own profiles."""

_EXAMPLE_BATCH = 2


def export_onnx(
    graph: nn.Module,
    height_px: int,
    width_px: int,
    output_names: Sequence[str],
    path: Path,
    free_size: FreeSize | None = None,
    output_stride: int = OUTPUT_STRIDE,
) -> None:
    """Export ``graph`` (uint8 (N, height, width, 3) to ``output_names``) to ``path``.

    The batch axis is dynamic; with ``free_size``, height and width are too. Pooled maps have one
    cell for ``output_stride`` pixels of the input. The file contains its weights and no paths or
    stack traces of the exporting machine.
    """
    sides = (_example_side(height_px, free_size), _example_side(width_px, free_size))
    example = torch.zeros(_EXAMPLE_BATCH, *sides, 3, dtype=torch.uint8)
    model = to_onnx(graph, (example,), ["images"], output_names, (_dynamic_axes(free_size),))
    longest_px = max(height_px, width_px, free_size.max_side_px if free_size else 0)
    add_corner_pool_functions(model, -(-longest_px // output_stride))
    write_onnx(model, path)


def to_onnx(
    module: nn.Module,
    examples: tuple[object, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_axes: tuple[object, ...],
) -> onnx.ModelProto:
    """Convert ``module`` to ONNX; ``dynamic_axes`` holds the dynamic axes of each example input.

    The batch axis of the examples must be longer than 1, or the exporter takes it for a constant.
    """
    with _quiet_exporter():
        module.eval()
        program = torch.onnx.export(
            module,
            examples,
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_shapes=dynamic_axes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:  # cannot happen with dynamo=True; the signature allows it
        raise RuntimeError("torch.onnx.export returned no program")
    return program.model_proto


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Check ``model`` and write it without metadata of the exporting machine."""
    _remove_metadata(model)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def dynamic_batch() -> dict[int, Any]:
    """Return the dynamic axes of an input with only the batch axis dynamic."""
    return {0: torch.export.Dim("batch", min=1, max=MAX_BATCH)}


def _dynamic_axes(free_size: FreeSize | None) -> dict[int, Any]:
    """Return the dynamic axes of (N, H, W, 3) for ``torch.onnx.export``."""
    axes = dynamic_batch()
    if free_size is not None and max_units(free_size) > 1:
        unit, reduction_px = free_size.multiple_px, free_size.reduction_px
        for axis, name in ((1, "height"), (2, "width")):
            units = torch.export.Dim(f"{name}_units", min=1, max=max_units(free_size))
            axes[axis] = unit * units - reduction_px
    return axes


def max_units(free_size: FreeSize) -> int:
    """Return the largest input side in multiples of ``multiple_px``."""
    return (free_size.max_side_px + free_size.reduction_px) // free_size.multiple_px


def _example_side(side_px: int, free_size: FreeSize | None) -> int:
    """Return the length of an axis of the example input: at least two units if it is dynamic.

    With one unit the innermost map would have one cell. The exporter takes a length of 1 for a
    constant, and would then fix the input length too.
    """
    if free_size is None or max_units(free_size) == 1:
        return side_px
    return max(side_px, 2 * free_size.multiple_px - free_size.reduction_px)


def _remove_metadata(model: onnx.ModelProto) -> None:
    """Remove stack traces, which hold local file names and change with every code edit."""
    graph = model.graph
    parts = [model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info]
    for part in [*parts, *graph.initializer]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Suppress log messages and warnings that concern only the exporter's internals."""
    logger = logging.getLogger("torch.onnx")  # "torchvision is not installed": nothing here uses it
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch.export uses a class that it has itself deprecated.
            warnings.filterwarnings("ignore", r".*LeafSpec.* is deprecated", FutureWarning)
            # Several inputs share the batch axis on purpose.
            warnings.filterwarnings("ignore", r"# The axis name: \w+ will not be used", UserWarning)
            yield
    finally:
        logger.setLevel(level)
