"""API keys, rate limits, CORS and security headers."""

import socket
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers
from support.images import encode, plain
from support.serving import ColourEngine, RunningServer

from service import rate_limit
from service.access import ApiKeys, KeyFileError
from service.cli import main
from service.rate_limit import RateLimiter

FIRST, SECOND = "first-key-0123456789", "second-key-0123456789"
IMAGE = encode(plain(1, 2))
StartServer = Callable[..., RunningServer]


def basic(user: str, password: str) -> str:
    """Return the header of HTTP Basic authentication, as Label Studio sends it."""
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# key of the gate camera\n{FIRST}\n\n{SECOND}\n")
    return path


@pytest.fixture
def key_server(start_server: StartServer, key_file: Path) -> RunningServer:
    return start_server(ColourEngine(), api_keys_file=key_file)


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {FIRST}"},
        {"authorization": f"bearer  {SECOND}"},
        {"X-API-Key": SECOND},
        {"Authorization": "Basic Zm9v", "X-API-Key": SECOND},
        {"Authorization": basic("anybody", FIRST)},
        {"Authorization": basic("a", "password of a proxy"), "X-API-Key": SECOND},
    ],
)
def test_accepts_valid_keys(key_server: RunningServer, headers: dict[str, str]) -> None:
    assert key_server.client.post("/detect", content=IMAGE, headers=headers).status_code == 200
    assert key_server.client.get("/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "received"),
    [
        ({}, "no API key"),
        ({"Authorization": "Basic Zm9v"}, "no API key"),
        ({"Authorization": "Basic a"}, "no API key"),
        ({"Authorization": "Basic /w=="}, "no API key"),
        ({"Authorization": basic(FIRST, "")}, "an unknown API key"),
        ({"Authorization": basic("anybody", FIRST[:-1])}, "an unknown API key"),
        ({"Authorization": f"Bearer {FIRST}x"}, "an unknown API key"),
        ({"Authorization": "Bearer"}, "an unknown API key"),
        ({"X-API-Key": FIRST[:-1]}, "an unknown API key"),
        ({"X-API-Key": "\u00e9".encode() * 16}, "an unknown API key"),
        ({"X-API-Key": "# key of the gate camera"}, "an unknown API key"),
    ],
)
def test_rejects_missing_and_unknown_keys(
    key_server: RunningServer, headers: Any, received: str
) -> None:
    response = key_server.client.post("/detect", content=IMAGE, headers=headers)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="centernet-serving"'
    assert response.json()["code"] == "unauthorized"
    assert received in response.json()["detail"]
    assert FIRST[:-1] not in response.text
    assert key_server.metric("centernet_request_errors_total", code="unauthorized") == 1


def test_every_route_except_the_probes_requires_a_key(key_server: RunningServer) -> None:
    document = key_server.client.get("/openapi.json").json()
    responses = {
        path: key_server.client.request(method, path.replace("{name}", "painted")).status_code
        for path, operations in document["paths"].items()
        for method in operations
    }
    probes = {"/livez", "/readyz", "/startupz", "/v2/health/live", "/v2/health/ready"}
    assert {path for path, status in responses.items() if status == 200} == probes
    assert {status for path, status in responses.items() if path not in probes} == {401}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) == ("401" in operation["responses"])
            assert ("security" in operation) == (path not in probes)
    assert set(document["components"]["securitySchemes"]) == {"HTTPBearer", "APIKeyHeader"}


def test_openapi_has_no_security_schemes_without_keys(server: RunningServer) -> None:
    document = server.client.get("/openapi.json").json()
    assert "securitySchemes" not in document["components"]
    assert "401" not in document["paths"]["/detect"]["post"]["responses"]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "contains no key"),
        (b"# none yet\n", "contains no key"),
        (b"short\n", "line 1 is not a key"),
        (FIRST.encode() + b"\ntwo words, which is odd\n", "line 2 is not a key"),
        ("schl\u00fcssel-0123456789".encode(), "line 1 is not a key"),
        (b"\0" * (1 << 21), "more than 1048576 bytes"),
    ],
)
def test_rejects_invalid_key_files(tmp_path: Path, content: bytes, error: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(KeyFileError, match=error) as caught:
        ApiKeys.read(path)
    assert "short" not in str(caught.value)
    assert "words" not in str(caught.value)


def test_a_missing_key_file_prevents_the_start(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, keys = str(project / "models"), str(tmp_path / "none")
    with pytest.raises(SystemExit) as caught:
        main(["--models", models, "--default-model", "blood_cells", "--api-keys-file", keys])
    assert caught.value.code == 2
    assert "No such file" in capsys.readouterr().err


def test_stores_only_digests_of_the_keys(key_file: Path) -> None:
    keys = ApiKeys.read(key_file)
    assert keys.name_of(Headers({"x-api-key": SECOND})) == "key_4"
    assert FIRST not in repr(vars(keys))


class Clock:
    """Clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_allows_a_burst_and_then_the_rate(clock: Clock) -> None:
    limiter = RateLimiter(2.0, 3, clock)
    assert [limiter.wait_s("a") for _ in range(4)] == [0, 0, 0, pytest.approx(0.5)]
    assert limiter.wait_s("b") == 0, "each client has a bucket of its own"
    clock.now = 0.25
    assert limiter.wait_s("a") == pytest.approx(0.25), "a rejection takes no token"
    clock.now = 0.5
    assert limiter.wait_s("a") == 0
    assert limiter.wait_s("a") > 0
    clock.now = 1000.0
    assert [limiter.wait_s("a") > 0 for _ in range(4)] == [False, False, False, True]


def test_the_long_run_average_is_the_rate(clock: Clock) -> None:
    limiter, taken = RateLimiter(3.0, 5, clock), 0
    for step in range(10_000):
        clock.now = step / 100
        taken += limiter.wait_s("a") == 0
    assert abs(taken - (3 * 99.99 + 5)) <= 1


def test_the_number_of_stored_clients_is_bounded(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limit, "MAX_CLIENTS", 10)
    limiter = RateLimiter(1.0, 1, clock)
    limiter.wait_s("first")
    for number in range(9):
        limiter.wait_s(str(number))
        assert limiter.wait_s("first") > 0, "an active client keeps its bucket"
    for number in range(100):
        limiter.wait_s(f"new {number}")
    assert len(limiter) == 10


def test_responds_429_before_the_body_is_read(start_server: StartServer) -> None:
    running = start_server(ColourEngine(), rate_limit_per_s=0.001, rate_limit_burst=2)
    assert [running.client.get("/models").status_code for _ in range(2)] == [200, 200]
    # The declared body is never sent.
    host, port = running.client.base_url.host, running.client.base_url.port
    with socket.create_connection((host, port), timeout=20) as connection:
        connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        assert connection.recv(20).startswith(b"HTTP/1.1 429 ")
    response = running.client.post("/detect", content=IMAGE)
    assert response.status_code == 429
    assert response.json()["code"] == "rate_limited"
    assert response.json()["retryable"] is True
    assert 900 < int(response.headers["Retry-After"]) <= 1000
    for path in ("/livez", "/readyz", "/metrics"):
        assert running.client.get(path).status_code == 200


def test_each_key_has_its_own_rate_and_unknown_keys_are_limited(
    start_server: StartServer, key_file: Path
) -> None:
    running = start_server(
        ColourEngine(), api_keys_file=key_file, rate_limit_per_s=0.001, rate_limit_burst=1
    )

    def get_models(api_key: str) -> int:
        return running.client.get("/models", headers={"X-API-Key": api_key}).status_code

    keys = (FIRST, FIRST, SECOND, SECOND)
    assert [get_models(key) for key in keys] == [200, 429, 200, 429]
    guesses = ("guess-1", "guess-2", "guess-3")
    assert [get_models(key) for key in guesses] == [401, 429, 429]


def test_uses_forwarded_addresses_only_from_trusted_proxies(start_server: StartServer) -> None:
    limits = {"rate_limit_per_s": 0.001, "rate_limit_burst": 1}

    def statuses(running: RunningServer, *addresses: str) -> list[int]:
        return [
            running.client.get("/models", headers={"X-Forwarded-For": address}).status_code
            for address in addresses
        ]

    direct = start_server(ColourEngine(), **limits)
    assert statuses(direct, "1.1.1.1", "1.1.1.2") == [200, 429]
    proxied = start_server(ColourEngine(), **limits, trusted_proxies=("127.0.0.0/8",))
    assert statuses(proxied, "1.1.1.1", "1.1.1.2", "9.9.9.9, 1.1.1.1") == [200, 200, 429]
    networks = ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "not an address")
    assert statuses(proxied, *networks) == [200, 429, 200, 200]


ORIGIN = "https://example.org"


def test_sends_no_cors_headers_by_default(server: RunningServer) -> None:
    response = server.client.get("/models", headers={"Origin": ORIGIN})
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_allows_the_configured_origins(start_server: StartServer, key_file: Path) -> None:
    running = start_server(ColourEngine(), cors_origins=(ORIGIN,), api_keys_file=key_file)
    preflight_headers = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-api-key",
    }
    preflight = running.client.options("/detect", headers={"Origin": ORIGIN, **preflight_headers})
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert preflight.headers["Access-Control-Allow-Headers"] == "x-api-key"
    rejected = running.client.options(
        "/detect", headers={"Origin": "https://evil.org", **preflight_headers}
    )
    assert rejected.status_code == 400
    assert "Access-Control-Allow-Origin" not in rejected.headers
    without_key = running.client.post("/detect", headers={"Origin": ORIGIN})
    assert without_key.status_code == 401
    assert without_key.headers["Access-Control-Allow-Origin"] == ORIGIN
    exposed = without_key.headers["Access-Control-Expose-Headers"]
    assert {"Server-Timing", "X-Request-ID", "Retry-After"} <= set(exposed.split(", "))
    other_origin = running.client.get("/livez", headers={"Origin": "https://evil.org"})
    assert "Access-Control-Allow-Origin" not in other_origin.headers


def test_every_response_has_the_security_headers(server: RunningServer) -> None:
    responses = [
        server.client.post("/detect", content=IMAGE),
        server.client.post("/detect"),
        *(server.client.get(path) for path in ("/livez", "/metrics", "/none", "/models")),
    ]
    for response in responses:
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "server" not in response.headers
