"""ONNX files: protobuf messages of a network, of hostile networks and of no network."""

from collections.abc import Callable
from random import Random

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.hostile_inputs.mutations import mutate_some

_HUGE = (1 << 20, 1 << 31, (1 << 63) - 1, -1)


def onnx_file(rng: Random) -> bytes:
    """Return an ONNX file, or bytes that resemble one."""
    choice = rng.random()
    if choice < 0.25:
        return _messages(rng, 0)
    if choice < 0.35:
        return _repeated_fields(rng)
    model = _network(rng)
    for change in rng.choices(_CHANGES, k=rng.choice((0, 1, 1, 2))):
        change(rng, model)
    return mutate_some(rng, model.SerializeToString())


def _network(rng: Random) -> onnx.ModelProto:
    """Return a network that ``centernet-export import`` accepts: a head from one convolution."""
    height = rng.choice((64, "height", 0, *_HUGE))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, height, 64])
    heads = {"hm": rng.choice((1, 2, 80)), "wh": 2, "reg": 2}
    nodes, weights, outputs = [], [], []
    for name, channels in heads.items():
        kernel = np.zeros((channels, 3, 4, 4), np.float32)
        weights.append(numpy_helper.from_array(kernel, f"{name}_weight"))
        nodes.append(
            helper.make_node(
                "Conv", ["image", f"{name}_weight"], [name], strides=[4, 4], kernel_shape=[4, 4]
            )
        )
        outputs.append(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, "h", "w"])
        )
    graph = helper.make_graph(nodes, "network", [image], outputs, weights)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", rng.choice((17, 20, 1, 99)))]
    )


def _constant(model: onnx.ModelProto, name: str, values: list[int]) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    return name


def _expand(rng: Random, model: onnx.ModelProto) -> None:
    """Add operators whose outputs have huge constant shapes, which checkers may fold."""
    sizes = _constant(
        model, f"sizes{len(model.graph.node)}", [rng.choice(_HUGE)] * rng.randint(1, 4)
    )
    operator = rng.choice(("ConstantOfShape", "Expand", "Tile", "Reshape", "Range"))
    inputs = {
        "ConstantOfShape": [sizes],
        "Range": [
            _constant(model, f"{sizes}{index}", [value])
            for index, value in enumerate((0, 1 << 40, 1))
        ],
    }.get(operator, ["image", sizes])
    model.graph.node.append(helper.make_node(operator, inputs, [f"out_{sizes}"]))


def _shape_chain(rng: Random, model: onnx.ModelProto) -> None:
    """Add a chain of operators on shapes that doubles their length at each step."""
    name = _constant(model, "chain", [1])
    for index in range(rng.choice((5, 30, 60))):
        following = f"chain{index}"
        model.graph.node.append(helper.make_node("Concat", [name, name], [following], axis=0))
        name = following
    model.graph.node.append(helper.make_node("ConstantOfShape", [name], ["filled"]))


def _dimensions(rng: Random, model: onnx.ModelProto) -> None:
    """Add operators whose outputs have very many dimensions."""
    if rng.random() < 0.5:
        name = _constant(model, "ones", [1] * rng.choice((10, 1000, 300_000)))
        model.graph.node.append(helper.make_node("Expand", ["image", name], ["many0"]))
        operator = "Add"
    else:  # each step doubles the number of dimensions
        model.graph.node.append(helper.make_node("ArgMax", ["image"], ["many0"]))
        operator = "Gather"
    for index in range(rng.choice((10, 100))):
        inputs, output = [f"many{index}"] * 2, f"many{index + 1}"
        model.graph.node.append(helper.make_node(operator, inputs, [output]))


def _nested(rng: Random, model: onnx.ModelProto) -> None:
    """Add conditions within conditions."""
    output = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    graph = helper.make_graph([], "leaf", [], [output])
    for _ in range(rng.choice((1, 15, 30, 60))):
        node = helper.make_node("If", ["image"], ["inner"], then_branch=graph, else_branch=graph)
        if node.ByteSize() > 1_000_000:
            break
        graph = helper.make_graph([node], "branch", [], [output])
    model.graph.node.append(
        helper.make_node("If", ["image"], ["o"], then_branch=graph, else_branch=graph)
    )


def _many(rng: Random, model: onnx.ModelProto) -> None:
    """Add many nodes, initializers, inputs or outputs."""
    count = rng.choice((100, 5000, 19_000, 21_000, 100_000))
    kind = rng.randrange(4)
    if kind == 0:
        node = helper.make_node("Relu", ["image"], ["y"])
        model.graph.node.extend([node] * count)
    elif kind == 1:
        previous = "image"
        for index in range(count // 5):
            model.graph.node.append(helper.make_node("Relu", [previous], [f"y{index}"]))
            previous = f"y{index}"
    elif kind == 2:
        tensor = numpy_helper.from_array(np.zeros(1, np.float32), "w")
        model.graph.initializer.extend([tensor] * (count // 2))
    else:
        value = helper.make_tensor_value_info("v", TensorProto.FLOAT, [1])
        rng.choice((model.graph.input, model.graph.output, model.graph.value_info)).extend(
            [value] * (count // 2)
        )


def _false_tensor(rng: Random, model: onnx.ModelProto) -> None:
    """State dimensions, types and places of weights that do not fit their data."""
    tensor = rng.choice(model.graph.initializer)
    kind = rng.randrange(4)
    if kind == 0:
        tensor.dims[0] = rng.choice(_HUGE)
    elif kind == 1:
        tensor.data_type = rng.choice((0, 2, 8, 23, 99))
    elif kind == 2:
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", rng.choice(("/etc/passwd", "../x", "weights"))
    else:
        tensor.dims.extend([1] * rng.choice((1, 70, 10_000)))


def _text(rng: Random, model: onnx.ModelProto) -> None:
    """Set long or unusual names, domains and operators."""
    value = rng.choice(("", "x" * 1_000_000, "\x1b[2J", "Loop", "Scan", "Conv", "a" * 300))
    node = rng.choice(model.graph.node)
    kind = rng.randrange(4)
    if kind == 0:
        node.op_type = value
    elif kind == 1:
        node.domain = value
    elif kind == 2:
        node.output[0] = value
    else:
        model.graph.output[0].name = value


def _function(rng: Random, model: onnx.ModelProto) -> None:
    """Define a function, which may call itself."""
    node = helper.make_node(rng.choice(("f", "Relu")), ["x"], ["y"], domain="d")
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("d", "f", ["x"], ["y"], [node], opset))
    model.opset_import.append(helper.make_opsetid("d", 1))


def _messages(rng: Random, depth: int) -> bytes:
    """Return fields of any number and wire type, nested."""
    out = []
    for _ in range(rng.choice((1, 2, 3, 5))):
        field = rng.choice((1, 5, 6, 7, 8, 10, 11, 13, 14, 15, 20, 22, 25, 5000))
        wire_type = rng.choice((2, 2, 2, 2, 0, 1, 5, 3, 6))
        out.append(_varint(field << 3 | wire_type))
        if wire_type == 2:
            content = _messages(rng, depth + 1) if depth < 12 and rng.random() < 0.6 else b"ab"
            content *= rng.choice((1, 1, 1, 40))
            content = content[:300_000]
            size = len(content) if rng.random() < 0.98 else rng.choice((0, 1 << 40, (1 << 64) - 1))
            out.append(_varint(size) + content)
        elif wire_type == 0:
            out.append(
                rng.choice((b"\x01", b"\xff" * 9 + b"\x01", b"\x80" * 30, b"\x80" * 9 + b"\0"))
            )
        else:
            out.append(bytes({1: 8, 5: 4}.get(wire_type, 0)))
    return b"".join(out)


def _repeated_fields(rng: Random) -> bytes:
    """Return the shortest encodings of as many or as deeply nested messages as possible."""
    kind = rng.randrange(3)
    if kind == 0:  # empty nodes, initializers, inputs or functions
        field = rng.choice((1, 5, 11, 15))
        graph = _varint(field << 3 | 2) + b"\0"
        graph *= rng.choice((1000, 400_000, 1_200_000))
        return b"\x3a" + _varint(len(graph)) + graph
    if kind == 1:  # graphs in attributes of nodes
        graph = b""
        for _ in range(rng.choice((10, 20, 22, 100, 3000))):
            attribute = b"\x32" + _varint(len(graph)) + graph
            node = b"\x2a" + _varint(len(attribute)) + attribute
            graph = b"\x0a" + _varint(len(node)) + node
        return b"\x3a" + _varint(len(graph)) + graph
    return b"\x08\x01" * rng.choice((100, 600_000, 1_100_000))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


_CHANGES: tuple[Callable[[Random, onnx.ModelProto], None], ...] = (
    *(_expand, _expand, _shape_chain, _dimensions, _nested, _many, _false_tensor, _text),
    _function,
)
