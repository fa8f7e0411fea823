"""Reading and validation of external ONNX files: networks with raw prediction heads."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import onnx
from google.protobuf.message import DecodeError

from model_export.errors import OnnxFileError
from model_export.key_mappings.objects_as_points import HEADS
from model_package import PackageInvalidError
from model_package.onnx_file import check_self_contained

MAX_FILE_BYTES = 1024**3
"""An hourglass in float32 takes 800 MB."""

MAX_NODES = 20_000
"""Maximum nodes, those of subgraphs included."""
_LOOPS = {"Loop", "Scan"}
_STANDARD_DOMAINS = {"", "ai.onnx"}
_SHOWN_CHARACTERS = 200  # names in the file can be of any length

Layout = Literal["nchw", "nhwc"]


@dataclass(frozen=True)
class ExternalModel:
    """An external network and its input and outputs."""

    model: onnx.ModelProto
    input_name: str
    layout: Layout
    height_px: int | None
    """None if dynamic."""
    width_px: int | None
    heads: dict[str, str]
    """Output name of each head, by network head name."""


def read_external_model(path: Path) -> ExternalModel:
    """Read ``path`` and reject everything but a network that returns undecoded head maps.

    The outputs must have the upstream head names: ``hm``, ``wh``, ``reg`` and so on. Raises
    :class:`OnnxFileError`.
    """
    model = _load(path)
    _check_parts(model, path)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [entry for entry in model.graph.input if entry.name not in weights]
    if len(inputs) != 1:
        raise OnnxFileError(
            f"{path} has {len(inputs)} inputs ({_shown(entry.name for entry in inputs)}); "
            "exactly one image input is accepted."
        )
    layout, height_px, width_px = _image_axes(inputs[0], path)
    outputs = [entry.name for entry in model.graph.output]
    heads = {HEADS[name]: name for name in outputs if name in HEADS}
    if not heads.keys() & {"heatmap", "center_heatmap"}:
        raise OnnxFileError(
            f"{path} has the outputs {_shown(outputs)}; accepted are undecoded head maps "
            f"with the upstream names: {', '.join(HEADS)}. Rename the outputs, or export "
            "the heads before decoding."
        )
    return ExternalModel(model, inputs[0].name, layout, height_px, width_px, heads)


def _load(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise OnnxFileError(f"{path} does not exist. Check the path.")
    size_bytes = path.stat().st_size
    if not 0 < size_bytes <= MAX_FILE_BYTES:
        raise OnnxFileError(f"{path} has {size_bytes} bytes; 1 to {MAX_FILE_BYTES} are accepted.")
    try:
        check_self_contained(path)
        # By default the file extension selects the parser: JSON and text formats have others.
        return onnx.load(path, format="protobuf", load_external_data=False)
    except PackageInvalidError as error:
        raise OnnxFileError(str(error)) from None
    except DecodeError as error:
        raise OnnxFileError(f"{path} is not an ONNX file, or it is damaged: {error}.") from error


def _check_parts(model: onnx.ModelProto, path: Path) -> None:
    """Reject custom operators, loops and invalid models."""
    nodes = list(islice(_nodes(model.graph), MAX_NODES + 1))
    domains = {node.domain for node in nodes} | {entry.domain for entry in model.opset_import}
    custom = domains - _STANDARD_DOMAINS
    if custom or model.functions:
        names = _shown(sorted(custom, key=str)) or "functions"
        raise OnnxFileError(
            f"{path} has custom operators ({names}); only the standard operators, which every "
            "runtime has, are accepted."
        )
    if len(nodes) > MAX_NODES:
        raise OnnxFileError(f"{path} has more than the {MAX_NODES} nodes that are accepted.")
    if loops := {node.op_type for node in nodes} & _LOOPS:
        raise OnnxFileError(
            f"{path} has {_shown(sorted(loops, key=str))} operators; loops are not accepted."
        )
    try:
        # Without inference of shapes, whose number of dimensions can grow exponentially.
        onnx.checker.check_model(model.SerializeToString())
    except Exception as error:  # also ValueError, UnicodeDecodeError and others of the library
        raise OnnxFileError(f"{path} is not valid: {_shown([str(error)])}.") from error


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph and of its subgraphs, whose nesting is limited."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _nodes(subgraph)


def _image_axes(entry: onnx.ValueInfoProto, path: Path) -> tuple[Layout, int | None, int | None]:
    tensor = entry.type.tensor_type
    sizes = [axis.dim_value or None for axis in tensor.shape.dim]
    if tensor.elem_type == onnx.TensorProto.FLOAT and len(sizes) == 4:
        if sizes[1] == 3:
            return "nchw", sizes[2], sizes[3]
        if sizes[3] == 3:
            return "nhwc", sizes[1], sizes[2]
    raise OnnxFileError(
        f"{path} has an input of shape {sizes}; accepted is a float32 image, (N, 3, H, W) or "
        "(N, H, W, 3)."
    )


def _shown(names: Iterable[object]) -> str:
    """Join names from an untrusted file, shortened and without terminal control sequences.

    A name that is not UTF-8 is read as bytes.
    """
    return ", ".join(map(str, names)).encode("unicode_escape").decode()[:_SHOWN_CHARACTERS]
