"""The detect routes over HTTP: responses, options, errors and batching."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import numpy as np
import pytest
from PIL import Image
from support.images import encode, plain, png_of_declared_size, quadrants
from support.serving import (
    TOP_K,
    ColourEngine,
    GatedEngine,
    RunningServer,
    assert_problem,
    post_concurrently,
    wait_until,
)

PNG = {"Content-Type": "image/png"}
RED = encode(plain(200, 40))


def post(
    server: RunningServer, body: bytes = RED, query: str = "", **headers: str
) -> httpx.Response:
    all_headers = PNG | {name.replace("_", "-"): value for name, value in headers.items()}
    return server.client.post(f"/detect{query}", content=body, headers=all_headers)


def expected_box(red: float, green: float) -> list[float]:
    """Return ``ColourEngine``'s box for 64 x 64 pixels: center (4 red, 4 green), sides of 8."""
    return [4 * red - 4, 4 * green - 4, 4 * red + 4, 4 * green + 4]


def test_detects_in_a_raw_body(server: RunningServer) -> None:
    response = post(server)
    assert response.status_code == 200
    result = response.json()
    assert result["model"] == {"name": "painted", "version": "1"}
    assert result["image"] == {"width": 64, "height": 64, "orientation_applied": False}
    assert result["detections"][0] == {
        "class_id": 0,
        "class_name": "red",
        "score": 0.9,
        "bbox": expected_box(200, 40),
    }
    stages = ["decode_queue", "prepare", "queue", "infer", "postprocess"]
    assert list(result["timing_ms"]) == stages
    assert response.headers["X-Request-ID"] == result["request_id"]
    assert response.headers["X-Batch-Size"] == "1"
    assert "infer;dur=" in response.headers["Server-Timing"]


@pytest.mark.parametrize(
    "content_type", ["image/png", "IMAGE/PNG; q=1", "application/octet-stream"]
)
def test_accepted_content_types(server: RunningServer, content_type: str) -> None:
    assert post(server, Content_Type=content_type).status_code == 200


def test_detects_in_a_body_without_content_type(server: RunningServer) -> None:
    assert server.client.post("/detect", content=RED).status_code == 200


def test_a_multipart_file_gives_the_detections_of_a_raw_body(server: RunningServer) -> None:
    response = server.client.post("/detect", files={"image": ("x.png", RED, "image/png")})
    assert response.status_code == 200
    assert response.json()["detections"] == post(server).json()["detections"]


def test_detects_in_a_large_multipart_file(server: RunningServer) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8)
    response = server.client.post("/detect", files={"image": encode(noise)})
    assert response.status_code == 200
    assert response.json()["image"]["width"] == 1000


def test_the_default_model_is_available_by_name(server: RunningServer) -> None:
    response = server.client.post("/models/painted/detect", content=RED)
    assert response.json()["detections"] == post(server).json()["detections"]


def test_detections_are_in_the_upright_image(server: RunningServer) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated: rotate 90 degrees clockwise
    body = encode(quadrants(96, 64), "PNG", exif=exif.tobytes())
    result = post(server, body).json()
    assert result["image"] == {"width": 64, "height": 96, "orientation_applied": True}
    upright = encode(np.rot90(quadrants(96, 64), -1).copy())
    assert result["detections"] == post(server, upright).json()["detections"]


@pytest.mark.parametrize(
    ("query", "classes"),
    [
        ("?score_threshold=0", ["red", "green", "blue", "red", "green"]),
        ("?score_threshold=0.65", ["red", "green", "blue"]),
        ("?score_threshold=1", []),
        ("?top_k=2", ["red", "green"]),
        ("?classes=blue", ["blue"]),
        ("?classes=red&classes=green&top_k=3", ["red", "green", "red"]),
    ],
)
def test_options_filter_detections(server: RunningServer, query: str, classes: list[str]) -> None:
    detections = post(server, query=query).json()["detections"]
    assert [detection["class_name"] for detection in detections] == classes
    scores = [detection["score"] for detection in detections]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("query", "received", "accepted"),
    [
        ("score_threshold=2", "'2'", "less than or equal to 1"),
        ("score_threshold=-0.1", "'-0.1'", "greater than or equal to 0"),
        ("score_threshold=nan", "'nan'", "finite number"),
        ("score_threshold=inf", "'inf'", "finite number"),
        ("score_threshold=high", "'high'", "valid number"),
        ("top_k=0", "'0'", "greater than or equal to 1"),
        ("top_k=1.5", "'1.5'", "valid integer"),
        (f"top_k={TOP_K + 1}", str(TOP_K + 1), f"at most {TOP_K}"),
        ("classes=pink", "'pink'", "red, green, blue"),
        ("classes=", "''", "red, green, blue"),
        ("threshold=0.5", "'0.5'", "The options are score_threshold, top_k, classes"),
    ],
)
def test_returns_422_for_invalid_options(
    server: RunningServer, query: str, received: str, accepted: str
) -> None:
    problem = assert_problem(post(server, query=f"?{query}"), 422, "invalid_option")
    assert received in problem["detail"]
    assert accepted in problem["detail"]


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
INVALID_BODIES = {
    "empty": (b"", 400, "empty_body", "is empty"),
    "text": (b"an image of a cat", 415, "unsupported_image", "Send one JPEG, PNG"),
    "html": (b"<!doctype html><html></html>", 415, "unsupported_image", "'<!doctype ht'"),
    "truncated JPEG": (encode(NOISE, "JPEG")[:900], 400, "bad_image", "cut off"),
    "truncated PNG": (encode(NOISE)[:900], 400, "bad_image", "cut off"),
    "PNG bomb": (png_of_declared_size(20_000, 20_000), 413, "image_size", "20000 x 20000 pixels"),
    "1 x 1": (png_of_declared_size(1, 1), 413, "image_size", "1 x 1 pixels"),
    "30000 x 10": (png_of_declared_size(30_000, 10), 413, "image_size", "30000 x 10 pixels"),
    "animated": (
        encode(Image.fromarray(NOISE), save_all=True, append_images=[Image.fromarray(255 - NOISE)]),
        415,
        "unsupported_image",
        "2 frames",
    ),
}


@pytest.mark.parametrize("name", INVALID_BODIES)
def test_rejects_invalid_images(server: RunningServer, name: str) -> None:
    body, status, code, text = INVALID_BODIES[name]
    problem = assert_problem(post(server, body), status, code)
    assert text in str(problem["detail"])
    assert server.client.post("/detect", files={"image": body}).status_code == status


def test_invalid_images_do_not_affect_others_in_the_batch(
    start_server: Callable[..., RunningServer],
) -> None:
    engine = GatedEngine()
    server = start_server(engine, max_batch_size=8)
    with ThreadPoolExecutor(32) as clients:
        first = clients.submit(post, server)
        assert engine.entered.acquire(timeout=10)
        good = [clients.submit(post, server, encode(plain(10 * i, 5 * i))) for i in range(4)]
        bad = [clients.submit(post, server, body) for body, *_ in INVALID_BODIES.values()]
        # Rejected while the engine still runs the first batch, before they enter the queue.
        assert all(400 <= future.result(20).status_code < 500 for future in bad)
        wait_until(lambda: server.metric("centernet_queue_inputs", model="painted") == 5)
        engine.gate.set()
        assert first.result(20).status_code == 200
        for i, future in enumerate(good):
            response = future.result(20)
            assert response.json()["detections"][0]["bbox"] == expected_box(10 * i, 5 * i)
    # Invalid images are not run; the others share one batch, or two if one arrived late.
    assert sum(engine.batch_sizes) == 5
    assert max(engine.batch_sizes) > 1


def test_64_clients_in_shared_batches_get_their_own_detections(
    start_server: Callable[..., RunningServer],
) -> None:
    engine = ColourEngine()
    server = start_server(engine, max_batch_size=8)
    bodies = [encode(plain(3 * i, 255 - 3 * i)) for i in range(64)]
    alone = [post(server, body).json()["detections"] for body in bodies]
    engine.batch_sizes.clear()
    responses = post_concurrently(server.url, bodies)
    assert [response.status_code for response in responses] == [200] * 64
    assert [response.json()["detections"] for response in responses] == alone
    assert sum(engine.batch_sizes) == 64
    assert max(engine.batch_sizes) > 1
    assert max(int(response.headers["X-Batch-Size"]) for response in responses) > 1


def test_returns_413_when_content_length_exceeds_the_limit(
    start_server: Callable[..., RunningServer],
) -> None:
    server = start_server(ColourEngine(), max_body_bytes=5000)
    problem = assert_problem(post(server, bytes(5001)), 413, "body_too_large")
    assert "5001 bytes were announced, at most 5000" in str(problem["detail"])


def test_returns_413_when_a_chunked_body_exceeds_the_limit(
    start_server: Callable[..., RunningServer],
) -> None:
    server = start_server(ColourEngine(), max_body_bytes=5000)

    def chunks() -> Iterator[bytes]:
        for _ in range(6):
            yield bytes(1000)

    response = server.client.post("/detect", content=chunks(), headers=PNG)
    problem = assert_problem(response, 413, "body_too_large")
    assert "more than 5000 bytes were received" in str(problem["detail"])


def test_detects_in_a_chunked_body_within_the_limit(server: RunningServer) -> None:
    half = len(RED) // 2
    response = server.client.post("/detect", content=iter([RED[:half], RED[half:]]), headers=PNG)
    assert response.json()["detections"] == post(server).json()["detections"]


def test_returns_415_for_compressed_bodies(server: RunningServer) -> None:
    problem = assert_problem(post(server, Content_Encoding="gzip"), 415, "unsupported_media_type")
    assert "'gzip'" in str(problem["detail"])


def test_unknown_models_routes_and_methods_return_problem_details(server: RunningServer) -> None:
    response = server.client.post("/models/cars/detect", content=RED)
    problem = assert_problem(response, 404, "unknown_model")
    assert "'cars'" in str(problem["detail"])
    assert "painted" in str(problem["detail"])
    assert_problem(server.client.get("/models/cars"), 404, "unknown_model")
    assert_problem(server.client.get("/detection"), 404, "not_found")
    assert_problem(server.client.get("/detect"), 405, "method_not_allowed")


def test_returns_408_when_the_body_does_not_arrive_in_time(
    start_server: Callable[..., RunningServer],
) -> None:
    server = start_server(ColourEngine(), body_timeout_s=0.2)
    stop = threading.Event()

    def slow() -> Iterator[bytes]:
        yield RED[:10]
        stop.wait(5)

    response = server.client.post("/detect", content=slow(), headers=PNG)
    stop.set()
    assert_problem(response, 408, "slow_body")


def test_returns_504_at_the_deadline_and_dequeues_the_input(
    start_server: Callable[..., RunningServer],
) -> None:
    engine = GatedEngine()
    server = start_server(engine, request_timeout_s=0.3)
    with ThreadPoolExecutor(2) as clients:
        first = clients.submit(post, server)
        assert engine.entered.acquire(timeout=10)
        second = clients.submit(post, server)
        for late in (first, second):
            assert_problem(late.result(20), 504, "deadline_exceeded")
    engine.gate.set()
    wait_until(lambda: len(engine.batch_sizes) >= 1)
    assert post(server).status_code == 200
    # The second request had left the queue: only the first and the last one were run.
    assert sum(engine.batch_sizes) == 2


def test_returns_429_with_retry_after_when_the_queue_is_full(
    start_server: Callable[..., RunningServer],
) -> None:
    engine = GatedEngine()
    server = start_server(engine, max_queue_size=3)
    with ThreadPoolExecutor(3) as clients:
        accepted_requests = [clients.submit(post, server) for _ in range(3)]
        wait_until(lambda: server.metric("centernet_queue_inputs", model="painted") == 3)
        response = post(server)
        problem = assert_problem(response, 429, "queue_full")
        assert problem["retryable"] is True
        assert int(response.headers["Retry-After"]) >= 1
        engine.gate.set()
        assert [future.result(20).status_code for future in accepted_requests] == [200] * 3
    assert post(server).status_code == 200


def raw_request(head: str) -> bytes:
    return f"POST /detect HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode()


def connect(server: RunningServer) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def test_inputs_of_disconnected_clients_are_not_run(
    start_server: Callable[..., RunningServer],
) -> None:
    engine = GatedEngine()
    server = start_server(engine)
    head = raw_request(f"Content-Length: {len(RED)}")
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(post, server)
        assert engine.entered.acquire(timeout=10)
        for _ in range(5):
            with connect(server) as connection:
                connection.sendall(head + RED)
                wait_until(lambda: server.metric("centernet_queue_inputs", model="painted") == 2)
            wait_until(lambda: server.metric("centernet_queue_inputs", model="painted") == 1)
        engine.gate.set()
        assert first.result(20).status_code == 200
    assert post(server).status_code == 200
    assert engine.batch_sizes == [1, 1]
    assert server.metric("centernet_request_errors_total", code="client_disconnected") == 5


def test_a_half_closed_client_is_treated_as_disconnected(
    start_server: Callable[..., RunningServer],
) -> None:
    engine = GatedEngine()
    server = start_server(engine)
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(post, server)
        assert engine.entered.acquire(timeout=10)
        with connect(server) as connection:
            connection.sendall(raw_request(f"Content-Length: {len(RED)}") + RED)
            wait_until(lambda: server.metric("centernet_queue_inputs", model="painted") == 2)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
            wait_until(lambda: server.metric("centernet_queue_inputs", model="painted") == 1)
        engine.gate.set()
        assert first.result(20).status_code == 200
    assert engine.batch_sizes == [1]
    assert server.metric("centernet_request_errors_total", code="client_disconnected") == 1


def test_detects_a_disconnect_after_a_large_body(
    start_server: Callable[..., RunningServer],
) -> None:
    large = encode(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8))
    engine = GatedEngine()
    server = start_server(engine)
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(post, server)
        assert engine.entered.acquire(timeout=10)
        with connect(server) as connection:
            # More than uvicorn buffers, so the rest arrives while the application awaits it.
            connection.sendall(raw_request(f"Content-Length: {len(large)}") + large[:1000])
            wait_until(lambda: server.metric("centernet_request_body_bytes") == len(RED) + 1000)
            connection.sendall(large[1000:])
            wait_until(lambda: server.metric("centernet_queue_inputs", model="painted") == 2)
        wait_until(lambda: server.metric("centernet_queue_inputs", model="painted") == 1)
        engine.gate.set()
        assert first.result(20).status_code == 200
    assert engine.batch_sizes == [1]


def test_incomplete_uploads_take_no_queue_slots(
    start_server: Callable[..., RunningServer],
) -> None:
    server = start_server(ColourEngine(), max_queue_size=2)
    with ExitStack() as stack:
        for _ in range(10):
            connection = stack.enter_context(connect(server))
            connection.sendall(raw_request("Content-Length: 100000") + b"some bytes")
        assert post(server).status_code == 200


def test_returns_429_when_bodies_exceed_their_shared_limit(
    start_server: Callable[..., RunningServer],
) -> None:
    body = encode(NOISE)
    limit = len(body) + 1000
    server = start_server(ColourEngine(), max_upload_bytes=limit)
    assert post(server, body).status_code == 200
    with connect(server) as connection:
        connection.sendall(raw_request("Content-Length: 2000") + bytes(1500))
        wait_until(lambda: server.metric("centernet_request_body_bytes") == 1500)
        problem = assert_problem(post(server, body), 429, "queue_full")
        assert f"use the {limit} bytes" in str(problem["detail"])
    wait_until(lambda: server.metric("centernet_request_body_bytes") == 0)
    assert post(server, body).status_code == 200


def test_closes_connections_with_endless_headers(server: RunningServer) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX: ")
        for _ in range(20):
            connection.sendall(b"y" * 10_000)
            threading.Event().wait(0.01)
        # What follows the response is discarded, so that the client can read it.
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")
        assert connection.recv(65536) == b""


def test_returns_400_for_a_form_with_an_unknown_charset(server: RunningServer) -> None:
    body = b'--B\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--B--\r\n'
    content_type = "multipart/form-data; boundary=B; charset=undefined"
    response = server.client.post("/detect", content=body, headers={"Content-Type": content_type})
    assert_problem(response, 400, "bad_form")


def test_unexpected_errors_return_500_and_log_the_request_id(
    start_server: Callable[..., RunningServer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("service.http.routes.to_response", broken)
    response = post(start_server(ColourEngine()), X_Request_ID="order-66")
    assert_problem(response, 500, "internal_error")
    assert response.headers["X-Request-ID"] == "order-66"
    assert "request order-66: unexpected error" in caplog.text


def test_stop_aborts_uploads_and_completes_accepted_requests(
    start_server: Callable[..., RunningServer],
) -> None:
    engine = GatedEngine()
    server = start_server(engine)
    with ThreadPoolExecutor(1) as clients, connect(server) as upload:
        upload.sendall(raw_request("Content-Length: 100000") + b"some bytes")
        accepted = clients.submit(post, server)
        assert engine.entered.acquire(timeout=10)
        server.stop()
        assert b"503 Service Unavailable" in upload.recv(1000)
        engine.gate.set()
        assert accepted.result(20).status_code == 200, "accepted requests are completed"
