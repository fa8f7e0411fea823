"""The routes of DeepStack and CodeProject.AI, with the requests of their clients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from support.images import encode, plain
from support.serving import ColourEngine, RunningServer

KEY = "key-0123456789abcdef"
IMAGE = encode(plain(200, 40))
DETECTION, CUSTOM = "/v1/vision/detection", "/v1/vision/custom/painted"


def post(server: RunningServer, path: str = DETECTION, **fields: Any) -> requests.Response:
    """Send a form as Frigate and the clients of DeepStack do."""
    return requests.post(server.url + path, data=fields, files={"image": IMAGE}, timeout=30)


@pytest.fixture
def key_server(start_server: Callable[..., RunningServer], tmp_path: Path) -> RunningServer:
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    return start_server(ColourEngine(), api_keys_file=keys)


@pytest.mark.parametrize("path", [DETECTION, CUSTOM])
def test_predictions_are_those_of_detect(server: RunningServer, path: str) -> None:
    expected = server.client.post("/detect", content=IMAGE).json()["detections"]
    body = post(server, path, api_key="", min_confidence=0.0).json()
    assert body["success"] is True
    assert body["count"] == len(body["predictions"]) == len(expected) > 1
    assert {"inferenceMs", "processMs"} < body.keys()
    for found, detection in zip(body["predictions"], expected, strict=True):
        assert found["label"] == detection["class_name"]
        assert found["confidence"] == detection["score"]
        box = [found[side] for side in ("x_min", "y_min", "x_max", "y_max")]
        assert box == [min(max(round(side), 0), 64) for side in detection["bbox"]]


def test_min_confidence_is_the_threshold(server: RunningServer) -> None:
    every = post(server, min_confidence=0.0).json()["predictions"]
    highest = every[0]["confidence"]
    expected = [found for found in every if found["confidence"] >= highest]
    assert 0 < len(expected) < len(every)
    assert post(server, min_confidence=highest).json()["predictions"] == expected


def test_unknown_fields_are_ignored(server: RunningServer) -> None:
    expected = post(server).json()["predictions"]
    assert post(server, typedname="x").json()["predictions"] == expected


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_models_are_listed(server: RunningServer, method: str) -> None:
    response = server.client.request(method, "/v1/vision/custom/list")
    assert response.json() == {"success": True, "models": ["painted"]}


def test_errors_have_the_form_of_deepstack(server: RunningServer) -> None:
    for response, status, text in [
        (post(server, "/v1/vision/custom/cars"), 404, "no model 'cars'"),
        (post(server, min_confidence="high"), 422, "score_threshold"),
        (server.client.post(DETECTION, files={"image": b"no image"}), 415, "JPEG"),
        (server.client.post(DETECTION, data={"api_key": ""}, files={"a": b"b"}), 400, "'image'"),
    ]:
        body = response.json()
        assert (response.status_code, body["success"], body["code"]) == (status, False, status)
        assert text in body["error"]


def test_rejected_requests_have_the_time_to_wait(
    start_server: Callable[..., RunningServer],
) -> None:
    running = start_server(ColourEngine(), rate_limit_per_s=0.01, rate_limit_burst=1)
    assert post(running).status_code == 200
    response = post(running)
    assert (response.status_code, response.json()["success"]) == (429, False)
    assert int(response.headers["Retry-After"]) > 1


def test_the_key_is_a_field_of_the_form(key_server: RunningServer) -> None:
    assert post(key_server, api_key=KEY).json()["success"] is True
    assert post(key_server, CUSTOM, api_key=KEY).json()["success"] is True
    for fields, text in [({}, "no API key"), ({"api_key": KEY[:-1]}, "an unknown API key")]:
        response = post(key_server, **fields)
        assert response.status_code == 401
        assert text in response.json()["error"]


def test_the_key_may_be_in_the_headers(key_server: RunningServer) -> None:
    headers = {"X-API-Key": KEY}
    files = {"image": IMAGE}
    assert key_server.client.post(DETECTION, files=files, headers=headers).status_code == 200
    names = key_server.client.get("/v1/vision/custom/list", headers=headers).json()["models"]
    assert names == ["painted"]


def test_names_of_models_need_a_key(key_server: RunningServer) -> None:
    assert key_server.client.get("/v1/vision/custom/list").status_code == 401
    response = post(key_server, "/v1/vision/custom/cars", api_key=KEY)
    assert response.status_code == 401
    assert "painted" not in response.text
