"""Poses, 3D boxes and corner models over HTTP, with engines that return fixed outputs."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from support.images import encode, plain, quadrants
from support.serving import FixedEngine, GatedEngine, RunningServer, make_manifest
from support.tasks import (
    BOX_ROWS,
    BOXES_3D,
    BOXES_3D_ROWS,
    CANVAS_3D,
    CENTER_ROWS,
    CORNER_CANVAS,
    FREE,
    PAIR_ROWS,
    POSE_ROWS,
    POSES,
    POSES_AND_BOXES_3D,
    POSES_AND_BOXES_3D_ROWS,
)

from model_package import CornerPairsDecoder, CornerTripletsDecoder

Start = Callable[..., RunningServer]
IMAGE = encode(plain(9, 9))


def post(server: RunningServer, query: str = "", body: bytes = IMAGE) -> httpx.Response:
    return server.client.post(f"/detect{query}", content=body)


def detections(server: RunningServer, query: str = "", body: bytes = IMAGE) -> Any:
    response = post(server, query, body)
    assert response.status_code == 200, response.text
    return response.json()["detections"]


def error_detail(server: RunningServer, query: str, body: bytes = IMAGE) -> str:
    response = post(server, query, body)
    assert response.status_code in (413, 422), response.text
    assert response.json()["code"] in ("invalid_option", "image_size")
    return str(response.json()["detail"])


def test_keypoints_are_in_image_pixels(start_server: Start) -> None:
    server = start_server(FixedEngine(POSE_ROWS), make_manifest(POSES))
    first, second = detections(server)
    assert first["bbox"] == [24, 16, 40, 48]
    assert first["keypoints"] == [[32, 20, 0.75], [32, 46, 0]]
    assert "box3d" not in first
    assert second["keypoints"][1] == [16, 18, 0.5]
    described = server.client.get("/models/painted").json()
    assert described["keypoints"] == ["nose", "tail"]
    assert described["skeleton"] == [[0, 1]]
    assert "keypoints" not in server.client.get("/models").json()["models"][0]


def test_keypoints_scale_with_the_image(start_server: Start) -> None:
    server = start_server(FixedEngine(POSE_ROWS), make_manifest(POSES))
    double = encode(plain(9, 9, size=(128, 128)))
    assert detections(server, body=double)[0]["keypoints"] == [[64, 40, 0.75], [64, 92, 0]]


def test_returns_3d_boxes_in_the_camera_frame(start_server: Start) -> None:
    server = start_server(FixedEngine(BOXES_3D_ROWS), make_manifest(BOXES_3D, CANVAS_3D))
    far, near = detections(server)
    assert far["bbox"] == [24, 24, 40, 40]
    box = far["box3d"]
    # On the optical axis at 20 m, bottom face 1 m below it, length along the viewing direction.
    assert box["dimensions_hwl"] == [2, 3, 4]
    assert box["location_xyz"] == [0, 1, 20]
    assert box["depth"] == 20
    assert abs(box["alpha"] - 3 * np.pi / 2) < 1e-3
    assert abs(box["rotation_y"] + np.pi / 2) < 1e-3
    near_face = sorted(box["corners_px"], key=lambda corner: abs(corner[0] - 32))[-4:]
    expected = [[32 + 150 / 18 * x, 32 + 100 / 18 * y] for x in (-1, 1) for y in (-1, 1)]
    assert np.allclose(sorted(near_face), expected, atol=1e-3)
    # At half a metre and 4 m long it extends behind the camera, where points have no projection.
    assert "corners_px" not in near["box3d"]


@pytest.mark.parametrize(
    "query", ["", "?soft_nms=true&fx=50&fy=50&cx=20&cy=32", "?top_k=1", "?classes=red"]
)
def test_one_response_has_keypoints_and_3d_boxes(start_server: Start, query: str) -> None:
    rows = POSES_AND_BOXES_3D_ROWS
    server, poses, boxes_3d = (
        start_server(FixedEngine(rows), make_manifest(decoder, CANVAS_3D))
        for decoder in (POSES_AND_BOXES_3D, POSES, BOXES_3D)
    )
    found = detections(server, query)
    without_camera = query.partition("&")[0]
    assert found
    for both, pose, box_3d in zip(
        found, detections(poses, without_camera), detections(boxes_3d, query), strict=True
    ):
        assert both == {**pose, **box_3d}
        assert {"keypoints", "box3d"} <= both.keys()
    described = server.client.get("/models/painted").json()
    assert described["task"] == "center_poses_and_boxes_3d"
    assert described["options"]["camera"]
    assert described["keypoints"] == ["nose", "tail"]
    assert "only the scale 1" in error_detail(server, "?scales=0.5")


@pytest.mark.parametrize(
    "query",
    [
        "?fx=200&fy=200&cx=32&cy=32",
        "?projection=200,0,32,0,0,200,32,0,0,0,1,0",
        "?" + "&".join(f"projection={x}" for x in (200, 0, 32, 0, 0, 200, 32, 0, 0, 0, 1, 0)),
    ],
)
def test_a_request_can_set_the_camera(start_server: Start, query: str) -> None:
    rows = BOXES_3D_ROWS | {"centers": np.float32([[12, 8], [12, 8]])}
    server = start_server(FixedEngine(rows), make_manifest(BOXES_3D, CANVAS_3D))
    # 16 pixels from the axis at 20 m: 3.2 m at a focal length of 100, 1.6 m at 200.
    assert detections(server)[0]["box3d"]["location_xyz"] == [3.2, 1, 20]
    assert detections(server, query)[0]["box3d"]["location_xyz"] == [1.6, 1, 20]


def test_rejects_invalid_cameras(start_server: Start) -> None:
    server = start_server(FixedEngine(BOXES_3D_ROWS), make_manifest(BOXES_3D, CANVAS_3D))
    assert "all four of fx, fy, cx and cy" in error_detail(server, "?fx=100&cx=1")
    assert "12 numbers of a matrix and 1 of" in error_detail(
        server, "?fx=1&projection=200,0,32,0,0,200,32,0,0,0,1,0"
    )
    assert "at least 12" in error_detail(server, "?projection=1,2,3")
    assert "valid number" in error_detail(server, "?projection=a,0,32,0,0,200,32,0,0,0,1,0")
    focal = error_detail(server, "?projection=-2,0,32,0,0,200,32,0,0,0,1,0")
    assert "received the focal lengths -2 and 200" in focal
    assert "Both must be from 1 to 1e+06" in focal
    for fx in ("0", "1e-310"):
        text = error_detail(server, f"?fx={fx}&fy=1&cx=1&cy=1")
        assert "greater than or equal to 1" in text
    assert "less than or equal to 1000000" in error_detail(server, "?fx=1e308&fy=1&cx=1&cy=1")
    assert "equal to -1000000" in error_detail(server, "?fx=1&fy=1&cx=-1e308&cy=1")
    assert "equal to 1000000" in error_detail(server, "?projection=9,0,9,1e7,0,9,9,0,0,0,1,0")
    assert "only the scale 1" in error_detail(server, "?scales=1&scales=2")


@pytest.mark.parametrize(
    "matrix",
    [
        "200,0.5,32,0,0,200,32,0,0,0,1,0",
        "200,0,32,0,0.5,200,32,0,0,0,1,0",
        "200,0,32,0,0,200,32,0,0,0,2,0",
        "200,0,32,0,0,200,32,0,0,0.5,1,0",
        "200,0,32,0,0,200,32,0,0,0,0,0",
    ],
)
def test_rejects_matrices_of_unrectified_cameras(start_server: Start, matrix: str) -> None:
    server = start_server(FixedEngine(BOXES_3D_ROWS), make_manifest(BOXES_3D, CANVAS_3D))
    text = error_detail(server, f"?projection={matrix}")
    assert f"received {matrix.replace(',', ', ')}. Only the matrix of a rectified camera" in text


@pytest.mark.parametrize(
    "query",
    [
        "?fx=1&fy=1&cx=1e6&cy=-1e6",
        "?fx=1e6&fy=1e6&cx=1e6&cy=1e6",
        "?projection=1,0,-1e6,1e6,0,1e6,1e6,-1e6,0,0,1,1e6",
        "?projection=1,0,-1e6,1e6,0,1e6,1e6,-1e6,0,0,1,-1e6",
    ],
)
def test_accepted_cameras_give_no_null_values(start_server: Start, query: str) -> None:
    server = start_server(FixedEngine(BOXES_3D_ROWS), make_manifest(BOXES_3D, CANVAS_3D))
    response = post(server, query)
    assert response.status_code == 200, response.text
    assert "null" not in response.text


def test_error_details_are_limited_in_length(start_server: Start) -> None:
    many = make_manifest().model_copy(
        update={"classes": tuple(f"class {index:04} {'y' * 200}" for index in range(1000))}
    )
    server = start_server(FixedEngine(BOX_ROWS), many)
    text = error_detail(server, f"?classes={'x' * 10_000}")
    assert f"received '{'x' * 100}'; model" in text
    assert "class 0019" in text
    assert "class 0020" not in text
    assert ", ... (1000 in all). Repeat the option" in text
    assert len(text) < 2500


def test_3d_boxes_support_keep_resolution(start_server: Start) -> None:
    engine = FixedEngine(BOXES_3D_ROWS)
    server = start_server(engine, make_manifest(BOXES_3D, CANVAS_3D))
    wide = encode(quadrants(96, 64))
    assert detections(server, "?keep_resolution=true", wide)[0]["bbox"] == [40, 24, 56, 40]
    assert np.array_equal(engine.calls[-1][0][0], quadrants(96, 64)[:, 16:80])


def test_corner_pairs_run_the_image_and_its_flipped_copy(start_server: Start) -> None:
    engine = FixedEngine(PAIR_ROWS)
    decoder = CornerPairsDecoder(output_stride=4, pairs=3, top_k=5, score_threshold=0.1)
    server = start_server(engine, make_manifest(decoder, CORNER_CANVAS))
    body = encode(quadrants(64, 64))
    response = post(server, body=body)
    assert response.headers["X-Batch-Size"] == "2"
    plain_input, flipped_input = engine.calls[0][0]
    assert plain_input.shape == (127, 127, 3)
    assert np.array_equal(plain_input[31:95, 31:95], quadrants(64, 64))
    assert np.array_equal(flipped_input, plain_input[:, ::-1])
    results = response.json()["detections"]
    cell = 127 / 32
    best = next(detection["bbox"] for detection in results if detection["score"] == 0.9)
    expected = [10 * cell - 31, 10 * cell - 31, 20 * cell - 31, 22 * cell - 31]
    assert best == pytest.approx(expected, abs=1e-3)
    # The same cells of the flipped copy are 12 to 22 in the image: it overlaps, its score decays.
    _, flipped = (row for row in results if row["class_name"] == "blue")
    assert flipped["score"] < 0.9
    assert flipped["bbox"][0] == pytest.approx(12 * cell - 31, abs=1e-3)
    assert "supports only true" in error_detail(server, "?flip=false", body)
    assert "supports only true" in error_detail(server, "?soft_nms=false", body)
    assert "supports only true" in error_detail(server, "?keep_resolution=false", body)
    assert detections(server, "?flip=true&keep_resolution=true&soft_nms=true", body) == results


def test_pairs_of_cornernet_lite_run_the_flipped_copy_on_request(start_server: Start) -> None:
    engine = FixedEngine(PAIR_ROWS)
    decoder = CornerPairsDecoder(
        output_stride=8, pairs=3, top_k=5, score_threshold=0.1, rules="cornernet_lite"
    )
    server = start_server(engine, make_manifest(decoder, CORNER_CANVAS))
    body = encode(quadrants(64, 64))
    response = post(server, body=body)
    assert response.headers["X-Batch-Size"] == "1"
    best = max(response.json()["detections"], key=lambda found: found["score"])
    # 16 cells for 127 pixels; the lower right corner is outside of the image.
    corner = 10 * 127 / 16 - 31
    assert best["bbox"] == pytest.approx([corner, corner, 64, 64], abs=1e-3)
    assert detections(server, "?flip=false", body) == response.json()["detections"]
    flipped = post(server, "?flip=true", body)
    assert flipped.headers["X-Batch-Size"] == "2"
    _, flipped_input = engine.calls[-1][0]
    assert np.array_equal(flipped_input[31:95, 32:96], quadrants(64, 64)[:, ::-1])


def test_corner_triplets_require_a_center(start_server: Start) -> None:
    engine = FixedEngine(PAIR_ROWS | CENTER_ROWS)
    decoder = CornerTripletsDecoder(
        output_stride=4, pairs=3, top_k=5, score_threshold=0.1, centers=2
    )
    server = start_server(engine, make_manifest(decoder, CORNER_CANVAS))
    results = detections(server)
    # Boxes 10..20 and 12..22 have a center of their class in the central region, the small one not.
    assert [detection["class_name"] for detection in results] == ["blue", "blue"]
    assert results[0]["score"] == pytest.approx((2 * 0.9 + 0.6) / 3, abs=1e-6)
    multi_scale = detections(server, "?scales=0.5,1,1.5")
    assert len(engine.calls[-1][0]) <= 4
    assert multi_scale[0]["score"] == results[0]["score"]
    assert "takes its centers from the scale 1" in error_detail(server, "?scales=0.5&scales=2")
    large = encode(plain(1, 2, size=(600, 600)))
    assert "input of 639 x 639; with keep_resolution the model accepts at most 511" in error_detail(
        server, "", large
    )


def test_options_select_artifact_scales_and_input_size(start_server: Start) -> None:
    engine = FixedEngine(BOX_ROWS)
    server = start_server(engine, make_manifest(input_spec=FREE, flips=(False, True)))
    assert len(detections(server)) == 2
    assert engine.calls[-1][1] is False
    detections(server, "?flip=true")
    assert engine.calls[-1][1] is True
    response = post(server, "?scales=0.5,1&keep_resolution=true&flip=true")
    assert response.status_code == 200
    shapes = [(images.shape[1:3], flip) for images, flip in engine.calls[-2:]]
    assert shapes == [((64, 64), True), ((96, 96), True)]
    # Soft-NMS defaults to on with several scales and to off with one, and can be requested.
    assert [row["score"] for row in detections(server, "?soft_nms=true&score_threshold=0.1")] == [
        0.9,
        pytest.approx(0.8 * np.exp(-2 * (15 * 33 / (19 * 33)) ** 2), abs=1e-5),
        0.2,
    ]


def test_models_list_their_options(start_server: Start) -> None:
    server = start_server(FixedEngine(BOX_ROWS), make_manifest())
    (model,) = server.client.get("/models").json()["models"]
    assert model["options"] == {
        "flip": [False],
        "keep_resolution": [False],
        "soft_nms": [False, True],
        "max_scales": 8,
        "camera": False,
    }
    assert "flip: received true; model painted supports only false" in error_detail(
        server, "?flip=true"
    )
    assert "supports only false" in error_detail(server, "?keep_resolution=1")
    assert "returns no 3D boxes" in error_detail(server, "?fx=1")
    assert "at most 8 items" in error_detail(server, "?" + "&".join(["scales=1"] * 9))
    assert "each scale once" in error_detail(server, "?scales=1,1")
    for scale in ("0.1", "9", "nan", "-1", "x"):
        assert f"'{scale}'" in error_detail(server, f"?scales={scale}")
    assert "valid boolean" in error_detail(server, "?flip=perhaps")


def test_a_single_request_may_not_exceed_the_queue_limit(start_server: Start) -> None:
    server = start_server(FixedEngine(BOX_ROWS), make_manifest(), max_queue_size=2)
    response = post(server, "?scales=0.5,1,1.5")
    assert (response.status_code, response.json()["code"]) == (413, "too_many_inputs")
    assert "retry-after" not in response.headers
    assert server.metric("centernet_queue_inputs", model="painted") == 0


def test_each_input_of_a_request_takes_a_queue_slot(start_server: Start) -> None:
    engine = GatedEngine()
    server = start_server(engine, max_queue_size=5)
    with ThreadPoolExecutor(2) as clients:
        first = clients.submit(post, server, "?scales=0.5,1,1.5")
        assert engine.entered.acquire(timeout=10)
        response = post(server, "?scales=0.5,1")
        assert response.status_code == 429
        assert "has 3 inputs queued of at most 4, and this request needs 2" in response.text
        second = clients.submit(post, server)
        engine.gate.set()
        assert first.result(20).status_code == second.result(20).status_code == 200


def test_openapi_describes_the_fields_of_all_tasks(server: RunningServer) -> None:
    document = server.client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    detection = schemas["Detection"]
    assert "keypoints" not in detection["required"]
    assert detection["properties"]["keypoints"]["items"]["minItems"] == 3
    assert detection["properties"]["box3d"]["$ref"].endswith("/Box3D")
    assert "null" not in str(detection["properties"])
    assert {"dimensions_hwl", "location_xyz", "rotation_y", "alpha", "depth"} == set(
        schemas["Box3D"]["required"]
    )
    parameters = {
        parameter["name"]: parameter
        for parameter in document["paths"]["/detect"]["post"]["parameters"]
    }
    assert {"flip", "scales", "keep_resolution", "soft_nms", "fx", "projection"} <= set(parameters)
    assert "keypoints" in schemas["PoseModelDetails"]["properties"]
