"""ONNX files that refer to other files, or are no protobuf messages, are rejected."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from google.protobuf.descriptor import Descriptor

from model_package import PackageInvalidError, load_package
from model_package.onnx_file import _MESSAGES, MAX_FIELDS, check_self_contained
from tests.model_package.test_package import write_package


def _external_tensor() -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=1)
    tensor.external_data.add(key="location", value="../../secret")
    return tensor


def _in_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(_external_tensor())


def _in_sparse_initializer(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(_external_tensor())


def _in_attribute(model: onnx.ModelProto) -> None:
    model.graph.node.add().attribute.add().t.CopyFrom(_external_tensor())


def _in_subgraph_list(model: onnx.ModelProto) -> None:
    graph = model.graph.node.add().attribute.add().graphs.add()
    graph.node.add().attribute.add().tensors.append(_external_tensor())


def _in_function(model: onnx.ModelProto) -> None:
    model.functions.add().node.add().attribute.add().g.initializer.append(_external_tensor())


def _in_training_info(model: onnx.ModelProto) -> None:
    model.training_info.add().algorithm.initializer.append(_external_tensor())


def _without_location(model: onnx.ModelProto) -> None:
    model.graph.initializer.add(data_location=1)


@pytest.mark.parametrize(
    "add",
    [
        _in_initializer,
        _in_sparse_initializer,
        _in_attribute,
        _in_subgraph_list,
        _in_function,
        _in_training_info,
        _without_location,
    ],
)
def test_external_data_is_rejected(tmp_path: Path, add: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.ModelProto(ir_version=10)
    model.graph.initializer.add(name="inside", dims=[2], data_type=1, raw_data=bytes(8))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    check_self_contained(path)
    add(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(PackageInvalidError, match="keeps weights in external files"):
        check_self_contained(path)


def test_a_package_with_external_data_is_not_loaded_or_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.ModelProto(ir_version=10)
    _in_initializer(model)
    monkeypatch.setattr("tests.model_package.test_package.EMPTY_MODEL", model.SerializeToString())
    with pytest.raises(PackageInvalidError, match="keeps weights in external files"):
        write_package(tmp_path / "cells")
    with monkeypatch.context() as unchecked:
        unchecked.setattr("model_package.directory.check_self_contained", lambda _: None)
        write_package(tmp_path / "cells")
    with pytest.raises(PackageInvalidError, match="keeps weights in external files"):
        load_package(tmp_path / "cells")


def test_every_message_that_can_contain_a_tensor_is_entered() -> None:
    found: dict[str, dict[int, str]] = {}
    open_types: list[Descriptor] = [onnx.ModelProto.DESCRIPTOR]
    while open_types:
        descriptor = open_types.pop()
        if descriptor.name in found:
            continue
        found[descriptor.name] = {
            field.number: field.message_type.name
            for field in descriptor.fields
            if field.message_type is not None
        }
        open_types += [field.message_type for field in descriptor.fields if field.message_type]
    with_tensor = {"TensorProto"}
    while (
        more := {name for name, fields in found.items() if set(fields.values()) & with_tensor}
        - with_tensor
    ):
        with_tensor |= more
    assert {
        name: {number: kind for number, kind in found[name].items() if kind in with_tensor}
        for name in with_tensor
    } == _MESSAGES


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no graph", "wire type"),
        (b"", "empty"),
        (b"\x3a\x7f", "longer than its message"),
        (b"\x08" + b"\xff" * 11, "cut off or too long"),
        (b"\x3d\x00", "end early"),
        (b"\x08\x01" * (MAX_FIELDS + 1), "more than"),
    ],
)
def test_malformed_files_are_rejected(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(PackageInvalidError, match=reason):
        check_self_contained(path)


def test_the_nesting_of_messages_is_bounded(tmp_path: Path) -> None:
    model = onnx.ModelProto()
    graph = model.graph
    for _ in range(30):
        graph = graph.node.add().attribute.add().g
    graph.name = "innermost"
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(PackageInvalidError, match="nested too deeply"):
        check_self_contained(path)
