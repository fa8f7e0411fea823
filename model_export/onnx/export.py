"""A graph into one portable ONNX file."""

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
"""Upper end of the batch axis that the exporter is promised; engines choose their own profile."""

_EXAMPLE_BATCH = 2


def export_onnx(
    graph: nn.Module,
    height_px: int,
    width_px: int,
    output_names: Sequence[str],
    path: Path,
    free_size: FreeSize | None = None,
) -> None:
    """Write ``graph`` (uint8 (N, height, width, 3) to ``output_names``) to ``path`` as ONNX.

    The batch axis is free; height and width are too with ``free_size``. The file holds its
    weights, and nothing about the machine that made it.
    """
    sides = (_example_side(height_px, free_size), _example_side(width_px, free_size))
    example = torch.zeros(_EXAMPLE_BATCH, *sides, 3, dtype=torch.uint8)
    model = to_onnx(graph, (example,), ["images"], output_names, (_free_axes(free_size),))
    longest_px = max(height_px, width_px, free_size.max_side_px if free_size else 0)
    add_corner_pool_functions(model, -(-longest_px // OUTPUT_STRIDE))
    write_onnx(model, path)


def to_onnx(
    module: nn.Module,
    examples: tuple[object, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    free_axes: tuple[object, ...],
) -> onnx.ModelProto:
    """Translate ``module``; ``free_axes`` says which axes of each example may be of other lengths.

    The batch axis of the examples must be longer than 1, or it is taken for a constant.
    """
    with _quiet_exporter():
        module.eval()
        program = torch.onnx.export(
            module,
            examples,
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_shapes=free_axes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:  # cannot happen with dynamo=True; the signature allows it
        raise RuntimeError("torch.onnx.export returned no program")
    return program.model_proto


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write ``model`` without traces of this machine, if it is valid."""
    _remove_traces(model)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def free_batch() -> dict[int, Any]:
    """Make the batch axis, and only that one, free."""
    return {0: torch.export.Dim("batch", min=1, max=MAX_BATCH)}


def _free_axes(free_size: FreeSize | None) -> dict[int, Any]:
    """Axes of (N, H, W, 3) that may have other lengths, as the exporter wants them."""
    axes = free_batch()
    if free_size is not None and most_units(free_size) > 1:
        unit, less_px = free_size.multiple_px, 1 - free_size.extra_px
        for axis, name in ((1, "height"), (2, "width")):
            units = torch.export.Dim(f"{name}_units", min=1, max=most_units(free_size))
            axes[axis] = unit * units - less_px
    return axes


def most_units(free_size: FreeSize) -> int:
    """How many times its unit a side may be long."""
    return (free_size.max_side_px + 1 - free_size.extra_px) // free_size.multiple_px


def _example_side(side_px: int, free_size: FreeSize | None) -> int:
    """Length of an axis in the example: where it is free, at least two units.

    With one the innermost map would have one cell, and the exporter takes a length of 1 for a
    constant, and with it the input's.
    """
    if free_size is None or most_units(free_size) == 1:
        return side_px
    return max(side_px, 2 * free_size.multiple_px + free_size.extra_px - 1)


def _remove_traces(model: onnx.ModelProto) -> None:
    """Remove stack traces: they name files of this machine, and change with every edit."""
    graph = model.graph
    parts = [model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info]
    for part in [*parts, *graph.initializer]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep from the user what the exporter says about its own insides."""
    logger = logging.getLogger("torch.onnx")  # "torchvision is not installed": nothing here uses it
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch.export copies a class of its own that it has deprecated.
            warnings.filterwarnings("ignore", r".*LeafSpec.* is deprecated", FutureWarning)
            # Several inputs share the batch axis: that is meant.
            warnings.filterwarnings("ignore", r"# The axis name: \w+ will not be used", UserWarning)
            yield
    finally:
        logger.setLevel(level)
