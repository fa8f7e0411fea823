"""The Open Inference Protocol over HTTP, with requests as its specification describes them."""

import base64
import gzip
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from support.images import encode, plain
from support.open_inference import (
    HEADER_LENGTH,
    INFER,
    INFER_TENSOR,
    arrays_of,
    binary_body,
    detections_of,
    image_input,
    infer,
    tensor_input,
    with_lengths,
)
from support.serving import (
    ColourEngine,
    FixedEngine,
    GatedEngine,
    RunningServer,
    assert_problem,
    make_manifest,
)
from support.tasks import (
    BOXES_3D,
    BOXES_3D_ROWS,
    CANVAS_3D,
    CORNER_CANVAS,
    EXTREME_POINT_ROWS,
    EXTREME_POINTS,
    PAIR_ROWS,
    POSE_ROWS,
    POSES,
    POSES_AND_BOXES_3D,
    POSES_AND_BOXES_3D_ROWS,
)

from model_package import CornerPairsDecoder
from service.engines import Images

Start = Callable[..., RunningServer]
CLASSES = ("red", "green", "blue")
FIRST, SECOND = encode(plain(200, 40)), encode(plain(20, 140))
ALL = {"parameters": {"score_threshold": 0.0}}
KEY = "key-0123456789abcdef"
PIXELS = np.full((2, 64, 64, 3), 7, np.uint8)


def expected(server: RunningServer, image: bytes, query: str = "?score_threshold=0") -> Any:
    detections = server.client.post(f"/detect{query}", content=image).json()["detections"]
    for detection in detections:
        detection.get("box3d", {}).pop("corners_px", None)  # not part of the protocol
    return detections


def assert_error(response: httpx.Response, status: int, code: str, text: str = "") -> None:
    problem = assert_problem(response, status, code)
    assert problem["error"] == problem["detail"]
    assert text in str(problem["error"]), problem["error"]


@pytest.mark.parametrize("binary", [True, False])
def test_detections_are_those_of_detect(server: RunningServer, binary: bool) -> None:
    parameters = {"score_threshold": 0.0, "binary_data_output": binary}
    response = infer(server, image_input(FIRST, SECOND), parameters=parameters, id="request 1")
    assert response.status_code == 200, response.text
    arrays = arrays_of(response)
    assert list(arrays) == ["num_detections", "boxes", "scores", "class_ids"]
    for index, image in enumerate((FIRST, SECOND)):
        assert detections_of(arrays, CLASSES, index) == expected(server, image)
    media_type = "application/octet-stream" if binary else "application/json"
    assert response.headers["Content-Type"] == media_type
    assert (HEADER_LENGTH in response.headers) == binary


def test_detections_are_padded(server: RunningServer) -> None:
    arrays = arrays_of(infer(server, image_input(FIRST), parameters={"top_k": 2}))
    assert arrays["boxes"].shape == (1, 5, 4)
    assert arrays["num_detections"].tolist() == [[2]]
    assert detections_of(arrays, CLASSES) == expected(server, FIRST, "?top_k=2")


def test_outputs_of_poses(start_server: Start) -> None:
    running = start_server(FixedEngine(POSE_ROWS), make_manifest(POSES))
    arrays = arrays_of(infer(running, image_input(FIRST), **ALL))
    assert arrays["keypoints"].shape == (1, 2, 2, 3)
    assert detections_of(arrays, CLASSES) == expected(running, FIRST)
    metadata = running.client.get("/v2/models/painted").json()
    assert metadata["outputs"][-1] == {
        "name": "keypoints",
        "datatype": "FP32",
        "shape": [-1, 2, 2, 3],
    }


def test_outputs_of_classes_without_keypoints_are_0(start_server: Start) -> None:
    decoder = POSES.model_copy(update={"keypoint_class_ids": (2,)})
    rows = {**POSE_ROWS, "class_ids": np.int32([2, 0])}
    running = start_server(FixedEngine(rows), make_manifest(decoder))
    (keypoints,) = arrays_of(infer(running, image_input(FIRST), **ALL))["keypoints"]
    assert keypoints[0].any()
    assert not keypoints[1].any()


def test_outputs_of_3d_boxes(start_server: Start) -> None:
    running = start_server(FixedEngine(BOXES_3D_ROWS), make_manifest(BOXES_3D, CANVAS_3D))
    parameters = {"score_threshold": 0.0, "projection": "200,0,32,0,0,200,32,0,0,0,1,0"}
    arrays = arrays_of(infer(running, image_input(FIRST), parameters=parameters))
    query = "?score_threshold=0&projection=" + parameters["projection"]
    assert detections_of(arrays, CLASSES) == expected(running, FIRST, query)


def test_outputs_of_poses_and_3d_boxes(start_server: Start) -> None:
    running = start_server(
        FixedEngine(POSES_AND_BOXES_3D_ROWS), make_manifest(POSES_AND_BOXES_3D, CANVAS_3D)
    )
    arrays = arrays_of(infer(running, image_input(FIRST), **ALL))
    assert arrays.keys() > {"keypoints", "depth"}
    assert detections_of(arrays, CLASSES) == expected(running, FIRST)


def test_outputs_of_extreme_points(start_server: Start) -> None:
    running = start_server(FixedEngine(EXTREME_POINT_ROWS), make_manifest(EXTREME_POINTS))
    arrays = arrays_of(infer(running, image_input(FIRST), **ALL))
    assert arrays["extreme_points"].shape == (1, 2, 4, 2)
    assert arrays["octagons"].shape == (1, 2, 8, 2)
    assert detections_of(arrays, CLASSES) == expected(running, FIRST)
    assert len(expected(running, FIRST)) == 1


def test_the_tensor_form_is_the_network(server: RunningServer) -> None:
    images = np.stack([plain(200, 40), plain(20, 140)])
    arrays = arrays_of(infer(server, tensor_input(images), INFER_TENSOR))
    outputs = ColourEngine().run(images)
    assert arrays.keys() == outputs.keys()
    for name, values in outputs.items():
        assert np.array_equal(arrays[name], values), name
        assert arrays[name].dtype == values.dtype


def test_the_tensor_form_of_corner_models_takes_single_images(start_server: Start) -> None:
    """The flipped image, which ``/detect`` adds, is left to the client."""
    engine = FixedEngine(PAIR_ROWS)
    decoder = CornerPairsDecoder(output_stride=4, pairs=3, top_k=3, score_threshold=0.1)
    running = start_server(engine, make_manifest(decoder, CORNER_CANVAS), max_queue_size=1)
    assert_error(infer(running, image_input(FIRST)), 413, "too_many_inputs")
    engine.calls.clear()
    images = np.zeros((1, 127, 127, 3), np.uint8)
    arrays = arrays_of(infer(running, tensor_input(images), INFER_TENSOR))
    assert sum(len(pixels) for pixels, _ in engine.calls) == 1
    for name, row in PAIR_ROWS.items():
        assert np.array_equal(arrays[name], row[None]), name


def test_flip_selects_the_artifact(start_server: Start) -> None:
    engine = FixedEngine({"scores": np.float32([0.5])})
    running = start_server(engine, make_manifest(flips=(False, True)))
    engine.calls.clear()
    infer(running, tensor_input(PIXELS), INFER_TENSOR, parameters={"flip": True})
    assert [flip for _, flip in engine.calls] == [True] * len(engine.calls)
    assert engine.calls


def test_values_in_json(server: RunningServer) -> None:
    image = {"name": "image", "shape": [1], "datatype": "BYTES"}
    texts = [base64.b64encode(FIRST).decode()]
    response = server.client.post(INFER, json={"inputs": [image | {"data": texts}], **ALL})
    assert detections_of(arrays_of(response), CLASSES) == expected(server, FIRST)

    tensor = {"name": "images", "shape": [1, 64, 64, 3], "datatype": "UINT8"}
    pixels = plain(200, 40)[None]
    binary = arrays_of(infer(server, tensor_input(pixels), INFER_TENSOR))
    for data in (pixels.tolist(), pixels.reshape(-1).tolist()):
        response = server.client.post(INFER_TENSOR, json={"inputs": [tensor | {"data": data}]})
        assert response.status_code == 200, response.text
        for name, values in arrays_of(response).items():
            assert np.array_equal(values, binary[name]), name


@pytest.mark.parametrize("path", [INFER, INFER_TENSOR])
def test_a_raw_binary_request_is_one_image(server: RunningServer, path: str) -> None:
    body = FIRST if path == INFER else plain(200, 40).tobytes()
    response = server.client.post(path, content=body, headers={HEADER_LENGTH: "0"})
    tensor = image_input(FIRST) if path == INFER else tensor_input(plain(200, 40)[None])
    arrays = arrays_of(infer(server, tensor, path))
    assert HEADER_LENGTH in response.headers
    for name, values in arrays_of(response).items():
        assert np.array_equal(values, arrays[name]), name


def test_outputs_are_those_requested(server: RunningServer) -> None:
    outputs: list[dict[str, Any]] = [
        {"name": "scores", "parameters": {"binary_data": False}},
        {"name": "boxes"},
        {"name": "num_detections", "parameters": {"binary_data": True}},
    ]
    response = infer(
        server, image_input(FIRST), outputs=outputs, parameters={"binary_data_output": True}
    )
    size = int(response.headers[HEADER_LENGTH])
    received = httpx.Response(200, content=response.content[:size]).json()["outputs"]
    assert [output["name"] for output in received] == ["scores", "boxes", "num_detections"]
    assert ["data" in output for output in received] == [True, False, False]
    arrays_of(response)
    outputs.pop()
    response = infer(server, image_input(FIRST), outputs=outputs)
    assert response.headers["Content-Type"] == "application/json"


def test_ids_are_repeated(server: RunningServer) -> None:
    assert infer(server, image_input(FIRST), id="r1 ä").json()["id"] == "r1 ä"
    assert "id" not in infer(server, image_input(FIRST)).json()
    assert_error(
        infer(server, image_input(FIRST), id="x" * 2000), 400, "invalid_inference_request", "1000"
    )


def test_the_version_is_optional(server: RunningServer) -> None:
    versioned = INFER.replace("/infer", "/versions/1/infer")
    body = infer(server, image_input(FIRST), versioned).json()
    assert (body["model_name"], body["model_version"]) == ("painted", "1")
    for path in ("", "/ready", "/config", "/stats"):
        plain_path, with_version = (
            f"/v2/models/painted{part}{path}" for part in ("", "/versions/1")
        )
        assert server.client.get(with_version).json() == server.client.get(plain_path).json()
        missing = server.client.get(f"/v2/models/painted/versions/2{path}")
        assert_error(missing, 404, "unknown_model", "no version '2'")
    missing = infer(server, image_input(FIRST), INFER.replace("/infer", "/versions/2/infer"))
    assert_error(missing, 404, "unknown_model", "no version '2'")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_bodies_are_decompressed(server: RunningServer, encoding: str) -> None:
    compress = gzip.compress if encoding == "gzip" else zlib.compress
    tensor, data = tensor_input(PIXELS)
    body, headers = binary_body({"inputs": [tensor]}, data)
    response = server.client.post(
        INFER_TENSOR, content=compress(body), headers={**headers, "Content-Encoding": encoding}
    )
    assert response.status_code == 200, response.text
    assert np.array_equal(
        arrays_of(response)["centers"],
        arrays_of(infer(server, (tensor, data), INFER_TENSOR))["centers"],
    )


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_large_responses_are_compressed(server: RunningServer, encoding: str) -> None:
    images = [FIRST] * 12
    outputs = {"parameters": {"binary_data_output": True}}
    identity = {"Accept-Encoding": "identity"}
    plain_response = infer(server, image_input(*images), headers=identity, **outputs)
    assert "Content-Encoding" not in plain_response.headers
    response = infer(
        server, image_input(*images), headers={"Accept-Encoding": f"br, {encoding}"}, **outputs
    )
    assert response.headers["Content-Encoding"] == encoding
    assert response.content == plain_response.content  # which httpx decompressed
    assert response.headers[HEADER_LENGTH] == plain_response.headers[HEADER_LENGTH]


@pytest.mark.parametrize("path", ["", "/models/painted", "/models/painted/config", "/models/stats"])
def test_only_inference_is_compressed(server: RunningServer, path: str) -> None:
    response = server.client.get(f"/v2{path}", headers={"Accept-Encoding": "gzip, deflate, br"})
    assert response.status_code == 200
    assert "Content-Encoding" not in response.headers


@pytest.mark.parametrize(
    ("compressed", "text"),
    [
        (gzip.compress(b"{}")[:-4], "not complete"),
        (gzip.compress(b"{}") + b"\x00", "after its end"),
        (gzip.compress(b"{}") * 2, "after its end"),
        (b"\x1f\x8b" + bytes(30), "decompressed with gzip"),
        (b"{}", "decompressed with gzip"),
        (zlib.compress(b"{}"), "decompressed with gzip"),
    ],
    ids=range(6),
)
def test_damaged_compression_is_refused(
    server: RunningServer, compressed: bytes, text: str
) -> None:
    response = server.client.post(INFER, content=compressed, headers={"Content-Encoding": "gzip"})
    assert_error(response, 400, "invalid_inference_request", text)


def test_other_compression_is_refused(server: RunningServer) -> None:
    response = server.client.post(INFER, content=b"{}", headers={"Content-Encoding": "br"})
    assert_error(response, 415, "unsupported_media_type", "gzip and deflate")


def test_decompressed_bodies_are_bounded(start_server: Start) -> None:
    running = start_server(ColourEngine(), max_body_bytes=100_000, max_upload_bytes=1_000_000)
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < 100_000
    for path in (INFER, INFER_TENSOR):
        response = running.client.post(path, content=bomb, headers={"Content-Encoding": "gzip"})
        assert_error(response, 413, "body_too_large", "100000")
    assert running.metric("centernet_request_body_bytes") == 0


@pytest.mark.parametrize("length", ["-1", "1e3", "", "99999", "9" * 5000, "0x10", "1.0"])
def test_header_lengths_that_lie_are_refused(server: RunningServer, length: str) -> None:
    response = server.client.post(INFER, content=b'{"inputs":[]}', headers={HEADER_LENGTH: length})
    assert_error(response, 400, "invalid_inference_request", HEADER_LENGTH)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b"[" * 5000,
        b'{"inputs": 5}',
        b'{"inputs": [5]}',
        b'{"inputs": []}',
        b'{"inputs": [{"name": "image"}]}',
        b'{"inputs": [{"name": 1, "datatype": "BYTES", "shape": [1], "data": [""]}]}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": 1, "data": [""]}]}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ""}]}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [1]}]}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["\xc3\xa4"]}]}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}]}',
        b'{"inputs": [{"name": "other", "datatype": "BYTES", "shape": [1], "data": [""]}]}',
        b'{"inputs": [], "parameters": []}',
        b'{"inputs": [], "parameters": {"binary_data_output": 1}}',
        b'{"inputs": [], "id": 5}',
        b'{"inputs": [], "outputs": {}}',
        b'{"inputs": [], "outputs": [{}]}',
        b'{"inputs": [], "outputs": [{"name": "other"}]}',
        b'{"inputs": [], "outputs": [{"name": "boxes"}, {"name": "boxes"}]}',
        b'{"inputs": [], "outputs": [{"name": "boxes", "parameters": {"classification": 3}}]}',
    ],
    ids=range(26),
)
def test_documents_that_are_no_requests_are_refused(server: RunningServer, body: bytes) -> None:
    response = server.client.post(INFER, content=body)
    assert response.status_code == 400, response.text
    assert response.json()["code"] in ("invalid_inference_request", "bad_json")
    assert response.json()["error"]


@pytest.mark.parametrize(
    "changes",
    [
        {"parameters": {"binary_data_size": 1}},
        {"parameters": {"binary_data_size": 10**30}},
        {"parameters": {"binary_data_size": -1}},
        {"parameters": {"binary_data_size": True}},
        {"parameters": {"binary_data_size": "100"}},
        {"parameters": {}},
        {"data": []},
        {"shape": [2]},
        {"datatype": "UINT8"},
    ],
    ids=range(9),
)
def test_tensors_that_lie_are_refused(server: RunningServer, changes: dict[str, Any]) -> None:
    response = infer(server, image_input(FIRST, **changes))
    assert_error(response, 400, "invalid_inference_request")


def test_binary_data_of_no_input_is_refused(server: RunningServer) -> None:
    tensor, data = image_input(FIRST)
    response = infer(server, (tensor, data + b"\x00"))
    assert_error(response, 400, "invalid_inference_request", "1 bytes of the body")


@pytest.mark.parametrize("field", ["inputs", "outputs"])
def test_the_number_of_tensors_is_bounded(server: RunningServer, field: str) -> None:
    body = {"inputs": [], field: [{"name": "boxes"}] * 33}
    assert_error(
        server.client.post(INFER, json=body), 400, "invalid_inference_request", "at most 32"
    )


def test_the_number_of_files_in_json_is_bounded(server: RunningServer) -> None:
    tensor = {"name": "image", "shape": [17], "datatype": "BYTES", "data": [""] * 17}
    assert_error(
        server.client.post(INFER, json={"inputs": [tensor]}),
        400,
        "invalid_inference_request",
        "17 files; at most 16",
    )


def test_json_with_many_values_is_refused(server: RunningServer) -> None:
    body = b'{"inputs": [' + b"0," * 200_000 + b"0]}"
    assert_error(server.client.post(INFER, content=body), 400, "bad_json", "binary data")


@pytest.mark.parametrize("path", [INFER, INFER_TENSOR])
def test_the_number_of_images_is_bounded(start_server: Start, path: str) -> None:
    running = start_server(ColourEngine(), max_images_per_request=2)
    images = [FIRST] * 3
    tensor = image_input(*images) if path == INFER else tensor_input(PIXELS[[0, 0, 0]])
    assert_error(infer(running, tensor, path), 400, "invalid_inference_request", "1 to 2")


def test_unknown_parameters_are_refused(server: RunningServer) -> None:
    response = infer(server, image_input(FIRST), parameters={"threshold": 0.5})
    assert_error(response, 400, "invalid_inference_request", "score_threshold")
    response = infer(server, image_input(FIRST), parameters={"top_k": 6})
    assert_error(response, 422, "invalid_option", "at most 5")
    response = infer(server, image_input(FIRST), INFER + "?top_k=2")
    assert_error(response, 422, "invalid_option", "parameters")


def test_the_error_of_one_image_names_it(server: RunningServer) -> None:
    response = infer(server, image_input(FIRST, b"no image"))
    assert_error(response, 415, "unsupported_image", "Image 1 of 2: ")
    assert_error(infer(server, image_input(b"no image")), 415, "unsupported_image", "JPEG")


def test_a_timeout_that_cannot_be_met(start_server: Start) -> None:
    engine = GatedEngine()
    running = start_server(engine)
    for tensor, path in ((image_input(FIRST), INFER), (tensor_input(PIXELS), INFER_TENSOR)):
        response = infer(running, tensor, path, parameters={"timeout": 200_000})
        assert_error(response, 504, "deadline_exceeded")
    engine.gate.set()


def test_engine_failures_are_errors_of_the_protocol(start_server: Start) -> None:
    class FailingEngine(ColourEngine):
        def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
            raise RuntimeError(f"no memory for {len(images)} images, {flip}")

    running = start_server(FailingEngine())
    for tensor, path in ((image_input(FIRST), INFER), (tensor_input(PIXELS), INFER_TENSOR)):
        assert_error(infer(running, tensor, path), 500, "engine_failed")


def test_access_is_that_of_the_other_routes(start_server: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    running = start_server(ColourEngine(), api_keys_file=keys)
    assert running.client.get("/v2/health/live").json() == {"live": True}
    assert running.client.get("/v2/health/ready").json() == {"ready": True}
    for path in ("", "/models/painted", "/models/painted/ready", "/models/stats", "/logging"):
        assert_error(running.client.get(f"/v2{path}"), 401, "unauthorized", "API key")
    assert_error(infer(running, image_input(FIRST)), 401, "unauthorized", "API key")
    response = infer(running, image_input(FIRST), headers={"X-API-Key": KEY})
    assert response.status_code == 200


def test_the_rate_limit_holds(start_server: Start) -> None:
    running = start_server(ColourEngine(), rate_limit_per_s=0.01, rate_limit_burst=2)
    assert infer(running, image_input(FIRST)).status_code == 200
    assert running.client.get("/v2").status_code == 200
    for response in (infer(running, image_input(FIRST)), running.client.get("/v2")):
        assert_error(response, 429, "rate_limited")
        assert int(response.headers["Retry-After"]) > 1
    assert running.client.get("/v2/health/ready").status_code == 200


def test_metadata_and_configuration(server: RunningServer) -> None:
    assert server.client.get("/v2").json()["name"] == "centernet-serving"
    image = server.client.get("/v2/models/painted").json()
    assert image["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    tensor = server.client.get("/v2/models/painted.tensor").json()
    assert (tensor["name"], tensor["versions"]) == ("painted.tensor", ["1"])
    assert tensor["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 64, 64, 3]}]
    assert {output["name"]: output["shape"] for output in tensor["outputs"]} == {
        "scores": [-1, 5],
        "class_ids": [-1, 5],
        "centers": [-1, 5, 2],
        "sizes": [-1, 5, 2],
    }
    config = server.client.get("/v2/models/painted.tensor/config").json()
    assert config["max_batch_size"] == 16
    assert config["input"] == [{"name": "images", "data_type": "TYPE_UINT8", "dims": [64, 64, 3]}]
    assert config["output"][2] == {"name": "centers", "data_type": "TYPE_FP32", "dims": [5, 2]}
    config = server.client.get("/v2/models/painted/config").json()
    assert config["max_batch_size"] == 0
    assert config["input"] == [{"name": "image", "data_type": "TYPE_STRING", "dims": [-1]}]
    assert config["parameters"]["class_names"] == {"string_value": '["red", "green", "blue"]'}


def test_statistics_count_requests_and_runs(start_server: Start) -> None:
    running = start_server(ColourEngine(), self_test_interval_s=0)
    infer(running, image_input(FIRST, SECOND))
    infer(running, tensor_input(PIXELS), INFER_TENSOR)
    running.client.post("/detect", content=FIRST)
    infer(running, image_input(b"no image"))
    for name in ("painted", "painted.tensor"):
        (statistics,) = running.client.get(f"/v2/models/{name}/stats").json()["model_stats"]
        assert statistics["name"] == name
        assert statistics["inference_count"] == 5
        runs = statistics["batch_stats"]
        sizes = [run["batch_size"] * run["compute_infer"]["count"] for run in runs]
        assert sum(sizes) == 5
        assert sum(run["compute_infer"]["count"] for run in runs) == statistics["execution_count"]
        counts = {key: value["count"] for key, value in statistics["inference_stats"].items()}
        assert (counts["success"], counts["fail"]) == (3, 1)
        assert counts["compute_infer"] == counts["compute_input"] == 4
        assert statistics["inference_stats"]["success"]["ns"] > 0
    every = running.client.get("/v2/models/stats").json()["model_stats"]
    assert [statistics["name"] for statistics in every] == ["painted", "painted.tensor"]


def test_the_repository_is_listed(server: RunningServer) -> None:
    post = server.client.post
    entries = post("/v2/repository/index").json()
    assert entries == [
        {"name": name, "version": "1", "state": "READY", "reason": ""}
        for name in ("painted", "painted.tensor")
    ]
    assert post("/v2/repository/index", json={"ready": True}).json() == entries
    for body in (b"[]", b"{", b'{"ready": 1}', b'{"ready": "yes"}'):
        assert_error(post("/v2/repository/index", content=body), 400, "bad_json")
    assert_error(post("/v2/repository/index", content=bytes(5000)), 413, "body_too_large")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/repository/models/painted/load"),
        ("POST", "/repository/models/painted/unload"),
        ("POST", "/systemsharedmemory/region/a/register"),
        ("POST", "/systemsharedmemory/unregister"),
        ("POST", "/cudasharedmemory/region/a/register"),
        ("GET", "/trace/setting"),
        ("POST", "/models/painted/trace/setting"),
        ("GET", "/logging"),
    ],
)
def test_parts_that_are_not_supported(server: RunningServer, method: str, path: str) -> None:
    response = server.client.request(method, f"/v2{path}")
    assert_error(response, 501, "unsupported_operation")


def test_shared_memory_is_not_used(server: RunningServer) -> None:
    for kind in ("system", "cuda"):
        assert server.client.get(f"/v2/{kind}sharedmemory/status").json() == []
    region = {"shared_memory_region": "a", "shared_memory_byte_size": 5}
    response = server.client.post(
        INFER,
        json={
            "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": region}]
        },
    )
    assert_error(response, 501, "unsupported_operation")
    outputs = [{"name": "boxes", "parameters": region}]
    response = infer(server, image_input(FIRST), outputs=outputs)
    assert_error(response, 501, "unsupported_operation")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/", 404),
        ("GET", INFER, 405),
        ("POST", "/v2/models/painted", 405),
    ],
)
def test_router_errors_are_those_of_the_protocol(
    server: RunningServer, method: str, path: str, status: int
) -> None:
    response = server.client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"] == response.json()["detail"]


def test_unknown_models(server: RunningServer) -> None:
    for name in ("cars", "cars.tensor", "painted.other"):
        assert_error(server.client.get(f"/v2/models/{name}"), 404, "unknown_model", "painted")
        assert_error(server.client.get(f"/v2/models/{name}/ready"), 404, "unknown_model")
        assert_error(
            infer(server, image_input(FIRST), f"/v2/models/{name}/infer"), 404, "unknown_model"
        )


def test_other_routes_have_no_error_member(server: RunningServer) -> None:
    for path in ("/nothing", "/v2nothing", "/models/v2"):
        assert "error" not in server.client.get(path).json()


def test_requests_are_counted_by_route(start_server: Start) -> None:
    running = start_server(ColourEngine())
    infer(running, image_input(FIRST))
    route = "/v2/models/{name}/infer"
    labels = {"route": route, "method": "POST", "status": "200"}
    assert running.metric("centernet_http_requests_total", **labels) == 1


def test_elements_of_raw_requests_have_no_length(server: RunningServer) -> None:
    response = server.client.post(INFER, content=with_lengths(FIRST), headers={HEADER_LENGTH: "0"})
    assert_error(response, 415, "unsupported_image")
