"""The inference service with Triton's client: the same detections as ``/detect``."""

import json
import subprocess
import sys
from typing import Any

import grpc
import numpy as np
import pytest
from support.images import encode, plain
from support.serving import TOP_K
from tritonclient.grpc import (
    InferenceServerException,
    InferInput,
    InferRequestedOutput,
    InferResult,
)

from service.grpc.inference_pb2 import ModelInferRequest, ModelInferResponse

from .conftest import GrpcServer

IMAGES = [encode(plain(200, 40)), encode(plain(30, 220))]
OUTPUTS = ["num_detections", "boxes", "scores", "class_ids"]


def image_input(images: list[bytes]) -> InferInput:
    tensor = InferInput("image", [len(images)], "BYTES")
    tensor.set_data_from_numpy(np.array(images, dtype=np.object_))
    return tensor


def detections(server: GrpcServer, image: bytes, query: str = "") -> list[dict[str, Any]]:
    response = server.http.client.post(f"/detect{query}", content=image)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["detections"]
    return found


def assert_equal_detections(
    result: InferResult, index: int, expected: list[dict[str, Any]]
) -> None:
    count = int(result.as_numpy("num_detections")[index, 0])
    assert count == len(expected)
    boxes = result.as_numpy("boxes")[index, :count]
    assert boxes.round(3).tolist() == pytest.approx(
        np.array([found["bbox"] for found in expected]).reshape(count, 4), abs=0.0011
    )
    scores = result.as_numpy("scores")[index, :count]
    assert scores == pytest.approx([found["score"] for found in expected], abs=1e-6)
    class_ids = result.as_numpy("class_ids")[index, :count]
    assert class_ids.tolist() == [found["class_id"] for found in expected]


def test_finds_the_detections_of_the_http_interface(grpc_server: GrpcServer) -> None:
    result = grpc_server.client.infer("painted", [image_input(IMAGES)], request_id="a request")
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == (
        *("painted", "1"),
        "a request",
    )
    assert [output.name for output in response.outputs] == OUTPUTS
    for index, image in enumerate(IMAGES):
        expected = detections(grpc_server, image)
        assert expected
        assert_equal_detections(result, index, expected)


def test_options_and_requested_outputs(grpc_server: GrpcServer) -> None:
    result = grpc_server.client.infer(
        "painted",
        [image_input(IMAGES[:1])],
        outputs=[InferRequestedOutput("scores"), InferRequestedOutput("num_detections")],
        parameters={"score_threshold": 0.75, "top_k": 3},
        priority=1,
        timeout=20_000_000,
    )
    assert [output.name for output in result.get_response().outputs] == [
        *("scores", "num_detections")
    ]
    expected = detections(grpc_server, IMAGES[0], "?score_threshold=0.75&top_k=3")
    assert 0 < len(expected) < TOP_K
    assert result.as_numpy("num_detections").tolist() == [[len(expected)]]


def test_typed_contents_equal_raw_contents(grpc_server: GrpcServer) -> None:
    request = ModelInferRequest(model_name="painted")
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[2])
    tensor.contents.bytes_contents.extend(IMAGES)
    response = ModelInferResponse.FromString(
        grpc_server.call("ModelInfer", request.SerializeToString())
    )
    raw = grpc_server.client.infer("painted", [image_input(IMAGES)]).get_response()
    assert list(response.raw_output_contents) == list(raw.raw_output_contents)


def test_tensor_form_in_both_representations(grpc_server: GrpcServer) -> None:
    metadata = grpc_server.client.get_model_metadata("painted.tensor")
    (spec,) = metadata.inputs
    pixels = np.random.default_rng(3).integers(0, 256, (2, *spec.shape[1:]), dtype=np.uint8)
    tensor = InferInput(spec.name, list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    result = grpc_server.client.infer("painted.tensor", [tensor])
    means = pixels.reshape(2, -1, 3).mean(axis=1)
    np.testing.assert_allclose(result.as_numpy("centers")[:, 0], means[:, :2], rtol=1e-6)

    request = ModelInferRequest(model_name="painted.tensor")
    typed = request.inputs.add(name=spec.name, datatype="UINT8", shape=pixels.shape)
    typed.contents.uint_contents.extend(pixels.ravel().tolist())
    response = ModelInferResponse.FromString(
        grpc_server.call("ModelInfer", request.SerializeToString())
    )
    assert list(response.raw_output_contents) == list(result.get_response().raw_output_contents)


def test_describes_the_server_and_its_models(grpc_server: GrpcServer) -> None:
    client = grpc_server.client
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("painted")
    assert client.get_server_metadata().name == "centernet-serving"
    metadata = client.get_model_metadata("painted", "1")
    assert [tensor.name for tensor in metadata.outputs] == OUTPUTS
    assert list(metadata.outputs[1].shape) == [-1, TOP_K, 4]
    config = client.get_model_config("painted.tensor").config
    assert config.max_batch_size > 0
    assert config.HasField("dynamic_batching")
    assert json.loads(config.parameters["class_names"].string_value) == ["red", "green", "blue"]
    index = client.get_model_repository_index().models
    assert {(model.name, model.state) for model in index} == {
        *(("painted", "READY"), ("painted.tensor", "READY"))
    }


def test_counts_inferences(grpc_server: GrpcServer) -> None:
    def count() -> int:
        (statistics,) = grpc_server.client.get_inference_statistics("painted").model_stats
        return int(statistics.inference_count)

    before = count()
    grpc_server.client.infer("painted", [image_input(IMAGES)])
    assert count() == before + 2
    every = grpc_server.client.get_inference_statistics().model_stats
    assert {"painted", "painted.tensor"} <= {statistics.name for statistics in every}


def status_of(caught: pytest.ExceptionInfo[InferenceServerException]) -> str:
    return str(caught.value.status())


@pytest.mark.parametrize(("name", "version"), [("nothing", ""), ("painted", "7")])
def test_unknown_models_and_versions(grpc_server: GrpcServer, name: str, version: str) -> None:
    client = grpc_server.client
    for request in (
        lambda: client.infer(name, [image_input(IMAGES)], version),
        lambda: client.get_model_metadata(name, version),
        lambda: client.get_model_config(name, version),
    ):
        with pytest.raises(InferenceServerException, match="painted") as caught:
            request()
        assert status_of(caught) == "StatusCode.NOT_FOUND"


def raw_request(
    data: bytes, datatype: str = "BYTES", shape: tuple[int, ...] = (1,), **changes: Any
) -> ModelInferRequest:
    request = ModelInferRequest(model_name="painted", raw_input_contents=[data])
    request.inputs.add(name="image", datatype=datatype, shape=shape)
    for name, value in changes.items():
        setattr(request, name, value)
    return request


def element(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


@pytest.mark.parametrize(
    ("request_message", "text"),
    [
        (raw_request(element(b"no image")), "image"),
        (raw_request((2**31).to_bytes(4, "little") + IMAGES[0]), "length"),
        (raw_request(element(IMAGES[0]), shape=(2,)), "elements"),
        (raw_request(element(IMAGES[0]), shape=(-1,)), "shape"),
        (raw_request(element(IMAGES[0]), shape=(2**62, 2**62)), "shape"),
        (raw_request(bytes(2), "FP16", (1,)), "FP16"),
        (ModelInferRequest(model_name="painted"), "inputs"),
        (ModelInferRequest(model_name="painted", raw_input_contents=[b"x"]), "raw_input_contents"),
    ],
)
def test_tensors_that_lie_are_refused(
    grpc_server: GrpcServer, request_message: ModelInferRequest, text: str
) -> None:
    error = grpc_server.error("ModelInfer", request_message.SerializeToString())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert text in error.details()


def test_the_parameter_that_perf_analyzer_sends_with_every_request(
    grpc_server: GrpcServer,
) -> None:
    request = raw_request(element(IMAGES[0]))
    request.parameters["triton_enable_empty_final_response"].bool_param = False
    assert grpc_server.call("ModelInfer", request.SerializeToString())


def test_contents_and_raw_contents_together_are_refused(grpc_server: GrpcServer) -> None:
    request = raw_request(element(IMAGES[0]))
    request.inputs[0].contents.bytes_contents.append(IMAGES[0])
    error = grpc_server.error("ModelInfer", request.SerializeToString())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "both" in error.details()


def test_unknown_parameters_are_refused(grpc_server: GrpcServer) -> None:
    with pytest.raises(InferenceServerException, match="score_threshold") as caught:
        grpc_server.client.infer("painted", [image_input(IMAGES)], parameters={"threshold": 0.3})
    assert status_of(caught) == "StatusCode.INVALID_ARGUMENT"
    request = raw_request(element(IMAGES[0]))
    request.outputs.add(name="boxes").parameters["classification"].int64_param = 3
    error = grpc_server.error("ModelInfer", request.SerializeToString())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "classification" in error.details()
    error = grpc_server.error(
        "ModelInfer", raw_request(element(IMAGES[0]), id="i" * 1001).SerializeToString()
    )
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "1001" in error.details()


def test_parts_of_the_protocol_that_are_not_supported(grpc_server: GrpcServer) -> None:
    client = grpc_server.client
    assert not client.get_system_shared_memory_status().regions
    assert not client.get_cuda_shared_memory_status().regions
    for request in (
        client.unregister_system_shared_memory,
        client.unregister_cuda_shared_memory,
        client.get_trace_settings,
        client.get_log_settings,
    ):
        with pytest.raises(InferenceServerException, match="not supported") as caught:
            request()
        assert status_of(caught) == "StatusCode.UNIMPLEMENTED"
    reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    for method, detail in (
        ("ModelStreamInfer", "ModelStreamInfer"),
        ("RepositoryModelLoad", "--model-control explicit"),
        (reflection, reflection),
    ):
        error = grpc_server.error(method)
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert detail in error.details()


def test_compressed_messages(grpc_server: GrpcServer) -> None:
    for algorithm in ("gzip", "deflate"):
        result = grpc_server.client.infer(
            "painted", [image_input(IMAGES[:1])], compression_algorithm=algorithm
        )
        assert_equal_detections(result, 0, detections(grpc_server, IMAGES[0]))


ASYNCIO_CLIENT = """
import asyncio, sys
import numpy as np
from tritonclient.grpc.aio import InferenceServerClient, InferInput

async def main():
    image = sys.stdin.buffer.read()
    async with InferenceServerClient(sys.argv[1]) as client:
        tensor = InferInput("image", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([image], dtype=np.object_))
        results = await asyncio.gather(*(client.infer("painted", [tensor]) for _ in range(8)))
        print(sum(int(result.as_numpy("num_detections")[0, 0]) for result in results))

asyncio.run(main())
"""


def test_asyncio_client(grpc_server: GrpcServer) -> None:
    """In a process of its own: gRPC supports one event loop per process well."""
    command = [sys.executable, "-c", ASYNCIO_CLIENT, grpc_server.address]
    done = subprocess.run(command, input=IMAGES[0], capture_output=True, check=True)
    assert int(done.stdout) == 8 * len(detections(grpc_server, IMAGES[0]))
