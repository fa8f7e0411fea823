"""Health, model metadata, metrics, OpenAPI and request IDs."""

import gzip
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError
from support.images import encode, plain
from support.serving import ColourEngine, RunningServer

from service.options import DetectParameters


def test_health_probes(server: RunningServer) -> None:
    assert server.client.get("/livez").json() == {"status": "live"}
    assert server.client.get("/readyz").json() == {
        "status": "ready",
        "failed": [],
        "loading": None,
    }


def test_probes_and_metrics_support_head(start_server: Callable[..., RunningServer]) -> None:
    running = start_server(ColourEngine())
    for path in ("/livez", "/readyz", "/metrics"):
        response = running.client.head(path)
        assert (response.status_code, response.content) == (200, b"")
    running.state.draining.set()
    assert running.client.head("/readyz").status_code == 503
    assert running.client.head("/livez").status_code == 200


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("top_k=1&top_k=2", "top_k: received 2 values, ['1', '2']"),
        ("flip=false&score_threshold=0.1&flip=false", "flip: received 2 values"),
        ("fx=1&fx=2&fx=3", "fx: received 3 values"),
        ("&".join(f"{index}" for index in range(2_001)), "2001 parameters; at most 2000"),
    ],
)
def test_rejects_repeated_and_too_many_options(
    server: RunningServer, query: str, message: str
) -> None:
    response = server.client.post(f"/detect?{query}", content=encode(plain(1, 2)))
    assert response.status_code == 422
    assert response.json()["code"] == "invalid_option"
    assert message in response.json()["detail"]


@pytest.mark.parametrize("name", ["scales", "projection"])
def test_a_list_of_many_invalid_values_has_one_error(name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        DetectParameters.model_validate({name: [","] * 1000})
    assert caught.value.error_count() == 1


def test_accepts_repeated_list_options(server: RunningServer) -> None:
    url = "/detect?classes=red&classes=green&scales=1&scales=0.5"
    assert server.client.post(url, content=encode(plain(1, 2))).status_code == 200


def test_metrics_are_compressed_outside_of_the_event_loop(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def compress(content: bytes, **options: int) -> bytes:
        threads.append(threading.current_thread().name)
        return original(content, **options)

    original = gzip.compress
    monkeypatch.setattr(gzip, "compress", compress)
    assert "centernet_" in server.client.get("/metrics").text  # httpx accepts gzip
    assert len(threads) == 1
    assert threads[0].startswith("asyncio_")


def test_the_api_description_is_made_at_the_start(server: RunningServer) -> None:
    assert server._server.app.openapi_schema is not None


def test_lists_and_describes_models(server: RunningServer) -> None:
    (listed,) = server.client.get("/models").json()["models"]
    assert listed["name"] == "painted"
    assert listed["default"] is True
    assert listed["classes"] == ["red", "green", "blue"]
    described = server.client.get("/models/painted").json()
    assert described.pop("manifest")["decoder"]["kind"] == "center_boxes"
    assert described == listed


def test_request_ids_are_echoed_or_generated(server: RunningServer) -> None:
    echoed = server.client.get("/livez", headers={"X-Request-ID": "order-66"})
    assert echoed.headers["X-Request-ID"] == "order-66"
    for bad in ("x" * 129, "two words", "caf\u00e9".encode()):
        generated = server.client.get("/livez", headers={"X-Request-ID": bad})
        assert len(generated.headers["X-Request-ID"]) == 32


def test_metrics_count_requests_errors_stages_and_batches(server: RunningServer) -> None:
    before = server.metric("centernet_request_errors_total", code="bad_image")
    server.client.post("/detect", content=encode(plain(1, 2)))
    server.client.post("/detect", content=encode(plain(1, 2))[:60])
    assert server.metric("centernet_request_errors_total", code="bad_image") == before + 1
    text = server.client.get("/metrics").text
    for line in (
        'centernet_http_requests_total{method="POST",route="/detect",status="200"}',
        'centernet_stage_duration_seconds_count{model="painted",stage="infer",version="1"}',
        'centernet_batch_size_bucket{le="1.0",model="painted",version="1"}',
        'centernet_queue_limit_inputs{model="painted",version="1"} 128.0',
    ):
        assert line in text


def test_openapi_describes_requests_responses_and_problems(server: RunningServer) -> None:
    document = server.client.get("/openapi.json").json()
    detect = document["paths"]["/detect"]["post"]
    assert set(detect["requestBody"]["content"]) == {
        "application/octet-stream",
        "multipart/form-data",
        "application/json",
    }
    assert set(detect["responses"]) == {
        *("200", "400", "404", "406", "408", "413", "415", "422", "429", "500", "503", "504")
    }
    for status, response in detect["responses"].items():
        assert "X-Request-ID" in response["headers"]
        assert ("Retry-After" in response["headers"]) == (status in {"429", "503"})
    assert "rate_limited" in detect["responses"]["429"]["description"]
    problem = detect["responses"]["415"]["content"]["application/problem+json"]["schema"]
    assert problem == {"$ref": "#/components/schemas/Problem"}
    fields = document["components"]["schemas"]["Problem"]["properties"]
    assert {"type", "detail", "code", "request_id", "retryable"} <= set(fields)
    operations = [
        operation["operationId"]
        for path in document["paths"].values()
        for operation in path.values()
    ]
    assert len(operations) == len(set(operations)), "client generators need unique operation IDs"
    detection = document["components"]["schemas"]["Detection"]["properties"]
    assert "EXIF" in detection["bbox"]["description"]
    assert "HTTPValidationError" not in json.dumps(document)


JSON_TYPES: dict[str, tuple[type, ...]] = {
    **{"object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,)},
    **{"integer": (int,), "number": (int, float), "null": (type(None),)},
}


def schema_violations(
    value: Any, schema: dict[str, Any], named: dict[str, Any], at: str = ""
) -> list[str]:
    """Return the violations of a JSON schema by a value: types, lengths and required properties."""
    if "$ref" in schema:
        return schema_violations(value, named[schema["$ref"].rpartition("/")[2]], named, at)
    for choices in (schema.get("anyOf"), schema.get("oneOf")):
        if choices:
            found = [schema_violations(value, choice, named, at) for choice in choices]
            return [] if [] in found else found[0]
    kind = schema.get("type")
    if kind and (not isinstance(value, JSON_TYPES[kind]) or (value is True and kind == "integer")):
        return [f"{at} is {value!r}, not {kind}"]
    parts: list[tuple[Any, dict[str, Any], str]] = []
    violations = []
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        violations = [
            f"{at} lacks {name}" for name in schema.get("required", []) if name not in value
        ]
        others = others if isinstance(others, dict) else {}
        parts = [(part, known.get(name, others), f"{at}.{name}") for name, part in value.items()]
    elif isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            violations = [f"{at} has {len(value)} items"]
        each = schema.get("prefixItems") or [schema.get("items", {})] * len(value)
        parts = [
            (part, of_part, f"{at}[{index}]")
            for index, (part, of_part) in enumerate(zip(value, each, strict=False))
        ]
    return violations + [
        fault for part in parts for fault in schema_violations(part[0], part[1], named, part[2])
    ]


@pytest.mark.parametrize(
    ("method", "route"),
    [
        *(("get", "/models"), ("get", "/models/{name}"), ("get", "/livez"), ("get", "/readyz")),
        *(("post", "/detect"), ("post", "/models/{name}/detect")),
    ],
)
def test_responses_match_their_openapi_schema(
    server: RunningServer, method: str, route: str
) -> None:
    document = server.client.get("/openapi.json").json()
    responses, named = document["paths"][route][method]["responses"], document["components"]
    schema = responses["200"]["content"]["application/json"]["schema"]
    body = encode(plain(1, 2)) if method == "post" else None
    url = route.replace("{name}", "painted")
    response = server.client.request(method, url, content=body)
    assert response.status_code == 200
    assert schema_violations(response.json(), schema, named["schemas"]) == []
    assert method == "get" or response.json()["detections"]
    if method == "post":
        invalid = server.client.post(url, content=body, params={"top_k": 0})
        problem = responses["422"]["content"]["application/problem+json"]["schema"]
        assert schema_violations(invalid.json(), problem, named["schemas"]) == []


def test_the_schema_check_finds_violations(server: RunningServer) -> None:
    named = server.client.get("/openapi.json").json()["components"]["schemas"]
    invalid = {"class_id": 1, "score": None, "bbox": [1, 2, "3"]}
    assert schema_violations(invalid, named["Detection"], named) == [
        " lacks class_name",
        ".score is None, not number",
        ".bbox has 3 items",
        ".bbox[2] is '3', not number",
    ]


def test_a_path_prefix_that_a_proxy_removes(start_server: Callable[..., RunningServer]) -> None:
    running = start_server(ColourEngine(), root_path="/vision")
    assert running.client.get("/openapi.json").json()["servers"] == [{"url": "/vision"}]
    assert running.client.post("/detect", content=encode(plain(1, 2))).status_code == 200
    assert running.client.get("/models/none").json()["instance"] == "/vision/models/none"
    for page in ("/", "/docs", "/page/page.css"):
        assert running.client.get(page).status_code == 200
