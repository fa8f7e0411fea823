"""The routes for Roboflow's client, with the requests that ``inference-sdk`` 1.8.3 sends."""

from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.images import encode, plain
from support.serving import ColourEngine, FixedEngine, RunningServer, assert_problem, make_manifest
from support.tasks import POSE_ROWS, POSES

Start = Callable[..., RunningServer]
IMAGE = encode(plain(200, 40), "JPEG")
HEADERS = {"Content-Type": "application/json", "User-Agent": "python-requests/2.34.2"}
KEY = "roboflow-0123456789"


def image(body: bytes = IMAGE) -> dict[str, str]:
    return {"type": "base64", "value": b64encode(body).decode()}


def infer(server: RunningServer, task: str = "object_detection", **fields: Any) -> httpx.Response:
    """Send the request of ``InferenceHTTPClient.infer``; without a key it has ``null`` for it."""
    body = {
        "api_key": None,
        "model_id": "painted",
        "visualize_predictions": False,
        "disable_active_learning": False,
        "image": image(),
        **fields,
    }
    return server.client.post(f"/infer/{task}", json=body, headers=HEADERS)


def test_the_registry_lists_the_models(server: RunningServer) -> None:
    response = server.client.get("/model/registry?api_key=None")
    assert response.json() == {
        "models": [
            {
                "model_id": "painted",
                "task_type": "object-detection",
                "batch_size": None,
                "input_height": 64,
                "input_width": 64,
            }
        ]
    }


def test_predictions_are_those_of_detect(server: RunningServer) -> None:
    expected = server.client.post("/detect?format=roboflow", content=IMAGE).json()
    found = infer(server).json()
    for content in (expected, found):
        for name in ("inference_id", "time"):
            assert content.pop(name)
        for prediction in content["predictions"]:
            assert prediction.pop("detection_id")
    assert found == expected
    assert len(found["predictions"]) == 5


def test_keypoints(start_server: Start) -> None:
    server = start_server(FixedEngine(POSE_ROWS), make_manifest(POSES))
    listed = server.client.get("/model/registry?api_key=None").json()["models"][0]
    assert listed["task_type"] == "keypoint-detection"
    predictions = infer(server, "keypoints_detection", keypoint_confidence=0.2).json()
    points = predictions["predictions"][0]["keypoints"]
    assert [point["class"] for point in points] == ["nose", "tail"]


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"confidence": 0.75}, 2),
        ({"confidence": "best"}, 5),
        ({"max_detections": 3}, 3),
        ({"class_filter": ["blue"]}, 1),
        ({"iou_threshold": 0.5, "class_agnostic_nms": True, "source": "x"}, 5),
    ],
)
def test_options(server: RunningServer, fields: dict[str, Any], count: int) -> None:
    assert len(infer(server, **fields).json()["predictions"]) == count


def test_several_images(server: RunningServer) -> None:
    bodies = [encode(plain(red, 10)) for red in (20, 200)]
    results = infer(server, image=[image(body) for body in bodies]).json()
    alone = [infer(server, image=image(body)).json() for body in bodies]
    for found, expected in zip(results, alone, strict=True):
        assert found["predictions"][0]["x"] == expected["predictions"][0]["x"]
    assert_problem(infer(server, image=[image(), image(IMAGE[:90])]), 400, "bad_image")


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"model_id": "other/1"}, 404, "unknown_model"),
        ({"model_id": None}, 422, "invalid_option"),
        ({"model_id": ["painted", "painted"]}, 422, "invalid_option"),
        ({"confidence": 2}, 422, "invalid_option"),
        ({"confidence": {"a": 1}}, 422, "invalid_option"),
        ({"image": {"type": "url", "value": "http://127.0.0.1/"}}, 400, "bad_json"),
        ({"image": {"type": "numpy", "value": "AAAA"}}, 400, "bad_json"),
        ({"image": {"type": "base64", "value": 3}}, 400, "bad_json"),
        ({"image": image(b"text")}, 415, "unsupported_image"),
    ],
)
def test_errors(server: RunningServer, fields: dict[str, Any], status: int, code: str) -> None:
    assert_problem(infer(server, **fields), status, code)


def test_keys(start_server: Start, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEY)
    server = start_server(ColourEngine(), api_keys_file=tmp_path / "keys")
    for key in (None, "wrong"):
        assert_problem(infer(server, api_key=key), 401, "unauthorized")
        url = f"/model/registry?api_key={key}"
        assert_problem(server.client.get(url), 401, "unauthorized")
    # A model that does not exist is not revealed without a key.
    assert_problem(infer(server, model_id="other"), 401, "unauthorized")
    assert infer(server, api_key=KEY).status_code == 200
    assert server.client.get(f"/model/registry?api_key={KEY}").status_code == 200
    headers = {"Authorization": f"Bearer {KEY}"}
    assert server.client.get("/model/registry", headers=headers).status_code == 200


def test_a_model_is_not_loaded_by_the_client(server: RunningServer) -> None:
    """The request of ``get_model_description`` for a model that is not in the registry."""
    body = {"api_key": None, "model_id": "coco/3"}
    problem = assert_problem(server.client.post("/model/add", json=body), 404, "unknown_model")
    assert "The loaded models are painted" in str(problem["detail"])
    added = server.client.post("/model/add", json={"model_id": "painted"})
    assert added.json() == server.client.get("/model/registry").json()
    assert_problem(server.client.post("/model/add", json={}), 422, "invalid_option")


def test_bodies_count_in_the_budget(start_server: Start) -> None:
    server = start_server(ColourEngine(), max_upload_bytes=2000)
    noise = encode(plain(1, 2, 3, (64, 64)), "BMP")
    assert_problem(infer(server, image=image(noise)), 429, "queue_full")
    assert infer(server).status_code == 200
    assert server.state.bodies.held_bytes == 0
