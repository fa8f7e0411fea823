"""The message definitions: equal to the published protocol, and generated from the .proto files."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FileDescriptor
from grpc_health.v1 import health_pb2 as published_health
from tritonclient.grpc import model_config_pb2, service_pb2

from service.grpc import health_pb2, inference_pb2

PARTS = {
    *("ModelConfig", "ModelInput", "ModelOutput", "ModelInstanceGroup", "ModelDynamicBatching"),
    "ModelStatistics",
}
"""Messages with a part of the published fields."""


def fields(message: Descriptor) -> dict[str, tuple[object, ...]]:
    return {
        field.name: (
            field.number,
            field.type,
            field.is_repeated,
            field.message_type and field.message_type.full_name,
            field.enum_type
            and {value.name: value.number for value in field.enum_type.values}.items(),
            field.containing_oneof and field.containing_oneof.name,
        )
        for field in message.fields
    }


def messages(file: FileDescriptor) -> Iterator[Descriptor]:
    pending = list(file.message_types_by_name.values())
    while pending:
        message = pending.pop()
        yield message
        pending += message.nested_types


def test_messages_equal_those_of_the_published_protocol() -> None:
    published = {
        message.full_name: message
        for file in (service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR)
        for message in messages(file)
    }
    compared = 0
    for message in messages(inference_pb2.ModelInferRequest.DESCRIPTOR.file):
        own, expected = fields(message), fields(published[message.full_name])
        if message.name in PARTS:
            expected = {name: field for name, field in expected.items() if name in own}
        assert own == expected, message.full_name
        compared += 1
    assert compared > 50


def test_health_messages_equal_the_published_ones() -> None:
    for name in ("HealthCheckRequest", "HealthCheckResponse"):
        own = getattr(health_pb2, name).DESCRIPTOR
        assert fields(own) == fields(getattr(published_health, name).DESCRIPTOR)


def test_methods_equal_those_of_the_published_protocol() -> None:
    published = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    file = inference_pb2.ModelInferRequest.DESCRIPTOR.file
    for method in file.services_by_name["GRPCInferenceService"].methods:
        expected = published[method.name]
        assert method.input_type.full_name == expected.input_type.full_name
        assert method.output_type.full_name == expected.output_type.full_name


@pytest.mark.parametrize("name", ["messages.binpb", "inference_pb2.pyi", "health_pb2.pyi"])
def test_generated_files_are_those_of_the_proto_files(
    project: Path, tmp_path: Path, name: str
) -> None:
    source = project / "service" / "grpc"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={source}"]
    outputs = [f"--descriptor_set_out={tmp_path / 'messages.binpb'}", f"--pyi_out={tmp_path}"]
    subprocess.run([*command, *outputs, "inference.proto", "health.proto"], check=True)
    assert (tmp_path / name).read_bytes() == (source / name).read_bytes(), "run `make messages`"
