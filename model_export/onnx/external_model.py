"""Reading somebody else's ONNX file: a network with raw heads, and nothing beyond that."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from model_export.checkpoints.objects_as_points import HEADS
from model_export.errors import OnnxFileError

MAX_FILE_BYTES = 1024**3
"""An hourglass in float32 has 800 MB."""

MAX_NODES = 20_000
_LOOPS = {"Loop", "Scan"}
_STANDARD_DOMAINS = {"", "ai.onnx"}
_SHOWN_CHARACTERS = 200  # names in the file can be of any length

Layout = Literal["nchw", "nhwc"]


@dataclass(frozen=True)
class ForeignNetwork:
    """What was found in the file."""

    model: onnx.ModelProto
    input_name: str
    layout: Layout
    height_px: int | None
    """None where the file leaves it free."""
    width_px: int | None
    heads: dict[str, str]
    """Name of the output of each head, by our names."""


def read_foreign_onnx(path: Path) -> ForeignNetwork:
    """Read ``path`` and refuse what a network with raw heads does not need.

    The outputs must be called as the authors call their heads: ``hm``, ``wh``, ``reg`` and so on.
    Raises :class:`OnnxFileError`.
    """
    model = _load(path)
    _check_parts(model, path)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [entry for entry in model.graph.input if entry.name not in weights]
    if len(inputs) != 1:
        raise OnnxFileError(
            f"{path} takes {len(inputs)} inputs ({_shown(entry.name for entry in inputs)}); "
            "accepted is one image."
        )
    layout, height_px, width_px = _image_axes(inputs[0], path)
    outputs = [entry.name for entry in model.graph.output]
    heads = {HEADS[name]: name for name in outputs if name in HEADS}
    if "heatmap" not in heads:
        raise OnnxFileError(
            f"{path} has the outputs {_shown(outputs)}; wanted are raw heads under the upstream "
            f"names: {', '.join(HEADS)}. Rename the outputs, or export the heads before decoding."
        )
    return ForeignNetwork(model, inputs[0].name, layout, height_px, width_px, heads)


def _load(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise OnnxFileError(f"there is no file {path}. Check the path.")
    size_bytes = path.stat().st_size
    if not 0 < size_bytes <= MAX_FILE_BYTES:
        raise OnnxFileError(f"{path} has {size_bytes} bytes; accepted are 1 to {MAX_FILE_BYTES}.")
    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise OnnxFileError(f"{path} is not an ONNX file, or it is damaged: {error}.") from error


def _check_parts(model: onnx.ModelProto, path: Path) -> None:
    """Refuse what reaches outside of the file, and what nobody can bound."""
    nodes = model.graph.node
    foreign = {entry.domain for entry in [*nodes, *model.opset_import]} - _STANDARD_DOMAINS
    if foreign or model.functions:
        raise OnnxFileError(
            f"{path} has operators of its own ({_shown(sorted(foreign)) or 'functions'}); "
            "accepted are the standard ones, which every runtime has."
        )
    if len(nodes) > MAX_NODES:
        raise OnnxFileError(f"{path} has {len(nodes)} nodes; accepted are {MAX_NODES}.")
    if loops := {node.op_type for node in nodes} & _LOOPS:
        raise OnnxFileError(f"{path} has {_shown(sorted(loops))}; a network needs no loops.")
    if _has_external_data(model.graph):
        raise OnnxFileError(f"{path} keeps weights in other files; save it as a single file.")
    try:
        onnx.checker.check_model(model.SerializeToString(), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise OnnxFileError(f"{path} is not valid: {_shown([str(error)])}.") from error


def _has_external_data(graph: onnx.GraphProto) -> bool:
    attributes = [entry for node in graph.node for entry in node.attribute]
    tensors = [*graph.initializer, *(entry.t for entry in attributes)]
    for entry in attributes:
        tensors += entry.tensors
    subgraphs = [entry.g for entry in attributes if entry.HasField("g")]
    return any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors) or any(
        _has_external_data(subgraph) for subgraph in subgraphs
    )


def _image_axes(entry: onnx.ValueInfoProto, path: Path) -> tuple[Layout, int | None, int | None]:
    tensor = entry.type.tensor_type
    sizes = [axis.dim_value or None for axis in tensor.shape.dim]
    if tensor.elem_type == onnx.TensorProto.FLOAT and len(sizes) == 4:
        if sizes[1] == 3:
            return "nchw", sizes[2], sizes[3]
        if sizes[3] == 3:
            return "nhwc", sizes[1], sizes[2]
    raise OnnxFileError(
        f"{path} takes an input of shape {sizes}; accepted is a float32 image, (N, 3, H, W) or "
        "(N, H, W, 3)."
    )


def _shown(names: Iterable[str]) -> str:
    """Join a stranger's names: shortened and escaped, so that they cannot play with a terminal."""
    return ", ".join(names).encode("unicode_escape").decode()[:_SHOWN_CHARACTERS]
