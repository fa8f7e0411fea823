"""Request bodies over HTTP: images of any Content-Type, forms and JSON, with options."""

import textwrap
from base64 import b64encode
from typing import Any

import numpy as np
import pytest
from support.images import encode, plain
from support.serving import RunningServer, assert_problem

RED = encode(plain(200, 40))
BASE64 = b64encode(RED).decode()


def detections(server: RunningServer) -> Any:
    """Return the detections in the image as a raw body."""
    return server.client.post("/detect", content=RED).json()["detections"]


_OTHER_TYPES = ["text/html", "application/x-www-form-urlencoded", "x"]


@pytest.mark.parametrize("content_type", _OTHER_TYPES)
def test_detects_in_images_of_any_content_type(server: RunningServer, content_type: str) -> None:
    response = server.client.post("/detect", content=RED, headers={"Content-Type": content_type})
    assert response.json()["detections"] == detections(server)


@pytest.mark.parametrize("content_type", _OTHER_TYPES)
def test_returns_415_for_other_bodies_of_other_content_types(
    server: RunningServer, content_type: str
) -> None:
    response = server.client.post(
        "/detect", content=b"<html>an image</html>", headers={"Content-Type": content_type}
    )
    problem = assert_problem(response, 415, "unsupported_media_type")
    assert repr(content_type) in str(problem["detail"])
    assert "start with b'<html>an ima'" in str(problem["detail"])


def test_detects_in_a_form_with_options(server: RunningServer) -> None:
    for name in ("image", "file"):
        options = {"top_k": "1", "classes": ["red", "blue"], "scales": "1"}
        response = server.client.post("/detect", files={name: RED}, data=options)
        assert response.json()["detections"] == detections(server)[:1]


@pytest.mark.parametrize(
    "text", [BASE64, f"data:image/png;base64,{BASE64}", "\r\n".join(textwrap.wrap(BASE64, 76))]
)
def test_detects_in_json(server: RunningServer, text: str) -> None:
    body = {"image": text, "top_k": 1, "scales": [1], "classes": ["red"], "flip": None}
    response = server.client.post("/detect", json=body)
    assert response.json()["detections"] == detections(server)[:1]


def test_detects_in_several_images_of_a_json_list(server: RunningServer) -> None:
    body = {"image": [BASE64, "bm8gaW1hZ2U=", BASE64], "top_k": 1}
    first, second, third = server.client.post("/detect/batch", json=body).json()["results"]
    assert first["detections"] == third["detections"] == detections(server)[:1]
    assert second["code"] == "unsupported_image"


def test_long_base64_is_decoded_in_parts(server: RunningServer) -> None:
    image = encode(np.random.default_rng(0).integers(0, 256, (800, 800, 3), dtype=np.uint8))
    assert len(image) > 1_500_000
    response = server.client.post("/detect", json={"image": b64encode(image).decode()})
    assert response.json()["image"] == {"width": 800, "height": 800, "orientation_applied": False}


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        (b"{", "bad_json", "not valid JSON"),
        (b"\xff", "bad_json", "not valid JSON"),
        (b"[" * 900, "bad_json", "not valid JSON"),
        (b"[" * 5000, "bad_json", "more than 1000 values"),
        (b'{"a":1' + b",1" * 5000, "bad_json", "more than 1000 values"),
        (b"[1]", "bad_json", "a value of type list"),
        (b'{"top_k": 1}', "empty_body", "no 'image', only ['top_k']"),
        (b'{"image": []}', "empty_body", "no 'image'"),
        (b'{"image": ["", ""]}', "bad_json", "received 2 images, accepted 1"),
        (b'{"image": ""}', "empty_body", "0 bytes"),
        (b'{"image": 3}', "bad_json", "of type int, not a string"),
        (b'{"image": "\xc3\xa4"}', "bad_json", "ascii"),
        (b'{"image": "abc"}', "bad_json", "padding"),
        (b'{"image": "ab_-"}', "bad_json", "base64"),
        (b'{"image": "data:image/png,x"}', "bad_json", "not data:...;base64,"),
    ],
)
def test_returns_400_for_invalid_json(
    server: RunningServer, body: bytes, code: str, text: str
) -> None:
    headers = {"Content-Type": "application/json"}
    response = server.client.post("/detect", content=body, headers=headers)
    assert text in str(assert_problem(response, 400, code)["detail"])


@pytest.mark.parametrize("arguments", [{"data": {"top_k": "0"}}, {"json": {"top_k": 0}}])
def test_returns_422_for_invalid_options_in_the_body(
    server: RunningServer, arguments: dict[str, Any]
) -> None:
    if "json" in arguments:
        arguments["json"]["image"] = BASE64
    else:
        arguments["files"] = {"image": RED}
    problem = assert_problem(server.client.post("/detect", **arguments), 422, "invalid_option")
    assert "top_k" in str(problem["detail"])


def test_returns_422_for_an_option_in_the_query_string_and_the_body(server: RunningServer) -> None:
    response = server.client.post("/detect?top_k=2", json={"image": BASE64, "top_k": 1})
    problem = assert_problem(response, 422, "invalid_option")
    assert "top_k: received 2 values, ['2', 1]" in str(problem["detail"])


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ({"files": {"a": RED}}, "empty_body", "no file field named 'image', only ['a']"),
        ({"files": {"a": b""}, "data": {"image": "x"}}, "empty_body", "only ['a', 'image']"),
        ({"files": [("image", RED), ("file", RED)]}, "bad_form", "Maximum number of files is 1"),
        ({"files": {"image": RED}, "data": {"top_k": "1" * 5000}}, "bad_form", "4KB"),
        (
            {"files": {"image": RED}, "data": {f"a{i}": "1" for i in range(33)}},
            "bad_form",
            "Maximum number of fields is 32",
        ),
        ({"files": [("image", RED), ("image", RED)]}, "bad_form", "Maximum number of files is 1"),
        (
            {"content": RED, "headers": {"Content-Type": "multipart/form-data"}},
            "bad_form",
            "boundary",
        ),
    ],
)
def test_returns_400_for_invalid_forms(
    server: RunningServer, arguments: dict[str, object], code: str, text: str
) -> None:
    problem = assert_problem(server.client.post("/detect", **arguments), 400, code)  # type: ignore[arg-type]
    assert text in str(problem["detail"])
