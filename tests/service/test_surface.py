"""Health, metadata, metrics, OpenAPI and request ids."""

import json

import pytest
from support.pictures import encode, plain
from support.serving import RunningServer


def test_health(server: RunningServer) -> None:
    assert server.client.get("/livez").json() == {"status": "live"}
    assert server.client.get("/readyz").json() == {"status": "ready"}


def test_models_are_listed_and_described(server: RunningServer) -> None:
    (listed,) = server.client.get("/models").json()["models"]
    assert listed["name"] == "painted"
    assert listed["default"] is True
    assert listed["classes"] == ["red", "green", "blue"]
    described = server.client.get("/models/painted").json()
    assert described.pop("manifest")["decoder"]["kind"] == "center_boxes"
    assert described == listed


def test_request_ids_are_echoed_or_made(server: RunningServer) -> None:
    given = server.client.get("/livez", headers={"X-Request-ID": "order-66"})
    assert given.headers["X-Request-ID"] == "order-66"
    for bad in ("x" * 129, "two words", "caf\u00e9".encode()):
        made = server.client.get("/livez", headers={"X-Request-ID": bad})
        assert len(made.headers["X-Request-ID"]) == 32


def test_metrics_count_requests_errors_stages_and_batches(server: RunningServer) -> None:
    before = server.metric("centernet_request_errors_total", code="bad_image")
    server.client.post("/detect", content=encode(plain(1, 2)))
    server.client.post("/detect", content=encode(plain(1, 2))[:60])
    assert server.metric("centernet_request_errors_total", code="bad_image") == before + 1
    text = server.client.get("/metrics").text
    for line in (
        'centernet_http_requests_total{method="POST",route="/detect",status="200"}',
        'centernet_stage_duration_seconds_count{model="painted",stage="infer"}',
        'centernet_batch_size_bucket{le="1.0",model="painted"}',
        'centernet_admission_limit_inputs{model="painted"} 128.0',
    ):
        assert line in text


def test_openapi_describes_bodies_answers_and_problems(server: RunningServer) -> None:
    document = server.client.get("/openapi.json").json()
    detect = document["paths"]["/detect"]["post"]
    assert set(detect["requestBody"]["content"]) >= {
        "image/jpeg",
        "application/octet-stream",
        "multipart/form-data",
    }
    assert set(detect["responses"]) == {
        *("200", "400", "404", "408", "413", "415", "422", "429", "500", "503", "504")
    }
    problem = detect["responses"]["415"]["content"]["application/problem+json"]["schema"]
    assert {"type", "detail", "code", "request_id", "retryable"} <= set(problem["properties"])
    operations = [
        operation["operationId"]
        for path in document["paths"].values()
        for operation in path.values()
    ]
    assert len(operations) == len(set(operations)), "a client generator needs unique names"
    detection = document["components"]["schemas"]["Detection"]["properties"]
    assert "EXIF" in detection["bbox"]["description"]
    assert "HTTPValidationError" not in json.dumps(document)


@pytest.mark.parametrize("path", ["/models", "/livez", "/readyz"])
def test_answers_match_their_openapi_schema(server: RunningServer, path: str) -> None:
    schema = server.client.get("/openapi.json").json()
    answer = schema["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]
    name = answer["schema"]["$ref"].rpartition("/")[2]
    required = schema["components"]["schemas"][name]["required"]
    assert set(required) <= set(server.client.get(path).json())
