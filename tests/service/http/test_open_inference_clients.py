"""Clients of the Open Inference Protocol over HTTP, unchanged."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.images import encode, plain
from support.open_inference import detections_of
from support.serving import ColourEngine, GatedEngine, RunningServer

triton = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
triton_aio = pytest.importorskip("tritonclient.http.aio", reason="needs tritonclient[http]")

CLASSES = ("red", "green", "blue")
IMAGES = [encode(plain(200, 40)), encode(plain(20, 140))]
OUTPUTS = ("num_detections", "boxes", "scores", "class_ids")


@contextmanager
def connect(server: RunningServer) -> Iterator[Any]:
    client = triton.InferenceServerClient(server.url.removeprefix("http://"))
    try:
        yield client
    finally:
        client.close()


def image_tensor(*images: bytes) -> Any:
    tensor = triton.InferInput("image", [len(images)], "BYTES")
    tensor.set_data_from_numpy(np.array(images, object))
    return tensor


def pixel_tensor(pixels: np.ndarray[Any, Any]) -> Any:
    tensor = triton.InferInput("images", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    return tensor


def expected(server: RunningServer, image: bytes) -> Any:
    response = server.client.post("/detect?score_threshold=0.55", content=image)
    return response.json()["detections"]


def assert_found(server: RunningServer, result: Any) -> None:
    arrays = {name: result.as_numpy(name) for name in OUTPUTS}
    for index, image in enumerate(IMAGES):
        assert detections_of(arrays, CLASSES, index) == expected(server, image)


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [None, True, False])
def test_tritonclient(server: RunningServer, compression: str | None, binary: bool | None) -> None:
    outputs = (
        binary
        if binary is None
        else [triton.InferRequestedOutput(name, binary_data=binary) for name in OUTPUTS]
    )
    with connect(server) as client:
        result = client.infer(
            "painted",
            [image_tensor(*IMAGES)],
            model_version="1",
            outputs=outputs,
            request_id="first",
            priority=1,
            timeout=20_000_000,
            request_compression_algorithm=compression,
            response_compression_algorithm=compression,
            parameters={"score_threshold": 0.55},
        )
        assert result.get_response()["id"] == "first"
        assert_found(server, result)


def test_tritonclient_with_asyncio(server: RunningServer) -> None:
    async def use() -> Any:
        address = server.url.removeprefix("http://")
        async with triton_aio.InferenceServerClient(address) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("painted")
            assert (await client.get_server_metadata())["name"] == "centernet-serving"
            assert (await client.get_model_metadata("painted.tensor"))["versions"] == ["1"]
            assert (await client.get_model_config("painted"))["backend"] == "centernet"
            assert len(await client.get_model_repository_index()) == 2
            assert (await client.get_inference_statistics())["model_stats"]
            tensor = image_tensor(*IMAGES)
            parameters = {"score_threshold": 0.55}
            with pytest.raises(triton.InferenceServerException, match="no model 'cars'"):
                await client.infer("cars", [tensor])
            return await client.infer("painted", [tensor], parameters=parameters)

    assert_found(server, asyncio.run(use()))


def test_tritonclient_reads_everything(server: RunningServer) -> None:
    with connect(server) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("painted", "1")
        assert not client.is_model_ready("cars")
        assert "statistics" in client.get_server_metadata()["extensions"]
        assert client.get_model_metadata("painted")["inputs"][0]["datatype"] == "BYTES"
        assert client.get_model_config("painted.tensor", "1")["max_batch_size"] == 16
        assert {entry["state"] for entry in client.get_model_repository_index()} == {"READY"}
        assert client.get_inference_statistics("painted")["model_stats"][0]["name"] == "painted"
        assert client.get_inference_statistics()["model_stats"]
        assert client.get_system_shared_memory_status() == []
        assert client.get_cuda_shared_memory_status() == []
        for unsupported in (
            lambda: client.load_model("painted"),
            lambda: client.unload_model("painted"),
            lambda: client.get_trace_settings(),
            lambda: client.get_log_settings(),
            lambda: client.register_system_shared_memory("a", "/a", 8),
        ):
            with pytest.raises(triton.InferenceServerException, match="not supported") as caught:
                unsupported()
            assert caught.value.status() == "501"


def test_tritonclient_sends_network_inputs(server: RunningServer) -> None:
    pixels = np.stack([plain(200, 40), plain(20, 140)])
    with connect(server) as client:
        result = client.infer("painted.tensor", [pixel_tensor(pixels)])
        pending = client.async_infer("painted.tensor", [pixel_tensor(pixels)])
        for received in (result, pending.get_result()):
            for name, values in ColourEngine().run(pixels).items():
                assert np.array_equal(received.as_numpy(name), values), name


def test_tritonclient_raises_the_errors(
    start_server: Callable[..., RunningServer], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("key-0123456789abcdef")
    headers = {"Authorization": "Bearer key-0123456789abcdef"}
    engine = GatedEngine()
    running = start_server(engine, api_keys_file=keys)
    tensor = image_tensor(IMAGES[0])
    with connect(running) as client:
        for send, status, text in [
            (lambda: client.infer("painted", [tensor]), "401", "API key"),
            (lambda: client.infer("cars", [tensor], headers=headers), "404", "no model 'cars'"),
            (
                lambda: client.infer("painted", [image_tensor(b"")], headers=headers),
                "400",
                "empty",
            ),
            (
                lambda: client.infer(
                    "painted", [tensor], headers=headers, parameters={"treshold": 0.5}
                ),
                "400",
                "score_threshold",
            ),
            (
                lambda: client.infer("painted", [tensor], headers=headers, timeout=100_000),
                "504",
                "deadline",
            ),
        ]:
            with pytest.raises(triton.InferenceServerException, match=text) as caught:
                send()
            assert caught.value.status() == status
    engine.gate.set()
