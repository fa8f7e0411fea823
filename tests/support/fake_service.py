"""A service on a real socket whose responses a test scripts, request by request."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = {
    "name": "painted",
    "version": "1",
    "task": "center_boxes",
    "classes": ["red"],
    "top_k": 5,
    "score_threshold": 0.3,
    "engine": "none",
    "default": True,
    "manifest": {},
}


@dataclass(frozen=True)
class Reply:
    """One response; ``None`` in place of it closes the connection without a response."""

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)


def detected(name: str) -> Reply:
    """Return a response with one detection of the class ``name``."""
    detection = {"class_id": 0, "class_name": name, "score": 0.5, "bbox": [1, 2, 3, 4]}
    return Reply(
        200,
        {
            "model": {"name": "painted", "version": "1"},
            "image": {"width": 64, "height": 64, "orientation_applied": False},
            "detections": [detection],
            "timing_ms": {"infer": 1.0},
            "request_id": "r",
        },
    )


def problem(status: int, code: str, *, retryable: bool, retry_after: str | None = None) -> Reply:
    """Return a problem document as the service sends it."""
    body = {"status": status, "code": code, "detail": f"{code}.", "retryable": retryable}
    return Reply(status, body, {} if retry_after is None else {"Retry-After": retry_after})


class FakeService:
    """Responds to ``/detect`` with ``script(body, n)``; n counts the requests with this body."""

    def __init__(self, script: Callable[[bytes, int], Reply | None]) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[Mapping[str, str]] = []
        self._script = script
        self._lock = threading.Lock()

    def respond(self, body: bytes, headers: Mapping[str, str]) -> Reply | None:
        with self._lock:
            self.bodies.append(body)
            self.headers.append(headers)
            count = self.bodies.count(body)
        return self._script(body, count)


@contextmanager
def fake_service(
    script: Callable[[bytes, int], Reply | None], port: int = 0
) -> Iterator[tuple[str, FakeService]]:
    """Run a service; yield its URL and the record of its requests."""
    service = FakeService(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(Reply(200, {"models": [MODEL]} if self.path == "/models" else MODEL))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            reply = service.respond(body, dict(self.headers))
            if reply is None:
                self.close_connection = True
            else:
                self._send(reply)

        def _send(self, reply: Reply) -> None:
            content = json.dumps(reply.body).encode()
            self.send_response(reply.status)
            self.send_header("Content-Length", str(len(content)))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            """Print nothing."""

    class Server(ThreadingHTTPServer):
        # A client that gave up closes its connection.
        def handle_error(self, *arguments: Any) -> None:
            """Print nothing."""

    with Server(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", service
        finally:
            server.shutdown()
            thread.join()
