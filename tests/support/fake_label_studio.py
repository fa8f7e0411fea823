"""A server with the files and the tokens of a Label Studio, for tests without one."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LEGACY_TOKEN = "0123456789abcdef0123456789abcdef01234567"
PERSONAL_TOKEN = "head.refresh.signature"
ACCESS_TOKEN = "head.access.signature"


class FakeLabelStudio:
    """Files by path and query; ``requests`` lists the method, path and credentials of each request.

    A file is its content, or a status with a header ``Location``; ``None`` does not arrive.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, bytes | tuple[int, str] | None] = {}
        self.requests: list[tuple[str, str, str]] = []


@contextmanager
def fake_label_studio() -> Iterator[FakeLabelStudio]:
    """Serve files to requests with one of the tokens, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            credentials = self._record()
            if credentials not in (f"Token {LEGACY_TOKEN}", f"Bearer {ACCESS_TOKEN}"):
                self._send(401, b"", {})
                return
            content = studio.files.get(self.path, (404, ""))
            if content is None:
                time.sleep(2)
            elif isinstance(content, tuple):
                self._send(content[0], b"", {"Location": content[1]})
            else:
                self._send(200, content, {})

        def do_POST(self) -> None:
            self._record()
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            is_valid = self.path == "/api/token/refresh/" and body == {"refresh": PERSONAL_TOKEN}
            reply = json.dumps({"access": ACCESS_TOKEN}).encode() if is_valid else b"{}"
            self._send(200 if is_valid else 401, reply, {})

        def _record(self) -> str:
            credentials = self.headers.get("Authorization", "")
            studio.requests.append((self.command, self.path, credentials))
            return credentials

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Do not write to standard error."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        studio = FakeLabelStudio(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield studio
        finally:
            server.shutdown()
            thread.join()
