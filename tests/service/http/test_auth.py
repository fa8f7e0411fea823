"""API keys, rates, origins and headers: who may ask, and what every answer says."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers
from support.images import encode, plain
from support.serving import ColourEngine, RunningServer

from service.cli import main
from service.http import rate_limit
from service.http.auth import ApiKeys, KeyFileError
from service.http.rate_limit import RateLimiter

FIRST, SECOND = "first-key-0123456789", "second-key-0123456789"
IMAGE = encode(plain(1, 2))
StartServer = Callable[..., RunningServer]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# of the camera at the gate\n{FIRST}\n\n{SECOND}\n")
    return path


@pytest.fixture
def locked(start_server: StartServer, key_file: Path) -> RunningServer:
    return start_server(ColourEngine(), api_keys_file=key_file)


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {FIRST}"},
        {"authorization": f"bearer  {SECOND}"},
        {"X-API-Key": SECOND},
        {"Authorization": "Basic Zm9v", "X-API-Key": SECOND},
    ],
)
def test_a_key_opens_the_api(locked: RunningServer, headers: dict[str, str]) -> None:
    assert locked.client.post("/detect", content=IMAGE, headers=headers).status_code == 200
    assert locked.client.get("/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "received"),
    [
        ({}, "no API key"),
        ({"Authorization": "Basic Zm9v"}, "no API key"),
        ({"Authorization": f"Bearer {FIRST}x"}, "an unknown API key"),
        ({"Authorization": "Bearer"}, "an unknown API key"),
        ({"X-API-Key": FIRST[:-1]}, "an unknown API key"),
        ({"X-API-Key": "\u00e9".encode() * 16}, "an unknown API key"),
        ({"X-API-Key": "# of the camera at the gate"}, "an unknown API key"),
    ],
)
def test_without_a_key_it_stays_shut(locked: RunningServer, headers: Any, received: str) -> None:
    refused = locked.client.post("/detect", content=IMAGE, headers=headers)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"] == 'Bearer realm="centernet-serving"'
    assert refused.json()["code"] == "unauthorized"
    assert received in refused.json()["detail"]
    assert FIRST[:-1] not in refused.text
    assert locked.metric("centernet_request_errors_total", code="unauthorized") == 1


def test_every_route_but_the_probes_is_shut(locked: RunningServer) -> None:
    document = locked.client.get("/openapi.json").json()
    answers = {
        path: locked.client.request(method, path.replace("{name}", "painted")).status_code
        for path, operations in document["paths"].items()
        for method in operations
    }
    probes = {"/livez", "/readyz", "/startupz"}
    assert {path for path, status in answers.items() if status == 200} == probes
    assert {status for path, status in answers.items() if path not in probes} == {401}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) == ("401" in operation["responses"])
            assert ("security" in operation) == (path not in probes)
    assert set(document["components"]["securitySchemes"]) == {"HTTPBearer", "APIKeyHeader"}


def test_without_keys_the_description_names_none(server: RunningServer) -> None:
    document = server.client.get("/openapi.json").json()
    assert "securitySchemes" not in document["components"]
    assert "401" not in document["paths"]["/detect"]["post"]["responses"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "contains no key"),
        (b"# none yet\n", "contains no key"),
        (b"short\n", "line 1 is not a key"),
        (FIRST.encode() + b"\ntwo words, which is odd\n", "line 2 is not a key"),
        ("schl\u00fcssel-0123456789".encode(), "line 1 is not a key"),
        (b"\0" * (1 << 21), "more than 1048576 bytes"),
    ],
)
def test_a_key_file_that_cannot_be_used_stops_the_start(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(KeyFileError, match=complaint) as caught:
        ApiKeys.read(path)
    assert "short" not in str(caught.value)
    assert "words" not in str(caught.value)


def test_a_missing_key_file_stops_the_start(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, keys = str(project / "models"), str(tmp_path / "none")
    with pytest.raises(SystemExit) as caught:
        main(["--models", models, "--default-model", "blood_cells", "--api-keys-file", keys])
    assert caught.value.code == 2
    assert "No such file" in capsys.readouterr().err


def test_only_digests_are_kept(key_file: Path) -> None:
    keys = ApiKeys.read(key_file)
    assert keys.name_of(Headers({"x-api-key": SECOND})) == "key_4"
    assert FIRST not in repr(vars(keys))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_client_has_a_burst_and_then_its_rate(clock: Clock) -> None:
    limiter = RateLimiter(2.0, 3, clock)
    assert [limiter.wait_s("a") for _ in range(4)] == [0, 0, 0, pytest.approx(0.5)]
    assert limiter.wait_s("b") == 0, "each client has a bucket of its own"
    clock.now = 0.25
    assert limiter.wait_s("a") == pytest.approx(0.25), "a refusal costs nothing"
    clock.now = 0.5
    assert limiter.wait_s("a") == 0
    assert limiter.wait_s("a") > 0
    clock.now = 1000.0
    assert [limiter.wait_s("a") > 0 for _ in range(4)] == [False, False, False, True]


def test_at_any_rate_the_long_run_average_is_the_rate(clock: Clock) -> None:
    limiter, taken = RateLimiter(3.0, 5, clock), 0
    for step in range(10_000):
        clock.now = step / 100
        taken += limiter.wait_s("a") == 0
    assert abs(taken - (3 * 99.99 + 5)) <= 1


def test_the_memory_of_clients_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "MAX_CLIENTS", 10)
    limiter = RateLimiter(1.0, 1, clock)
    limiter.wait_s("first")
    for number in range(9):
        limiter.wait_s(str(number))
        assert limiter.wait_s("first") > 0, "who keeps asking is remembered"
    for number in range(100):
        limiter.wait_s(f"new {number}")
    assert len(limiter) == 10


def test_too_many_requests_get_429_before_their_body(start_server: StartServer) -> None:
    running = start_server(ColourEngine(), rate_limit_per_s=0.001, rate_limit_burst=2)
    assert [running.client.get("/models").status_code for _ in range(2)] == [200, 200]
    # The body that is announced never comes.
    host, port = running.client.base_url.host, running.client.base_url.port
    with socket.create_connection((host, port), timeout=20) as connection:
        connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        assert connection.recv(20).startswith(b"HTTP/1.1 429 ")
    refused = running.client.post("/detect", content=IMAGE)
    assert refused.status_code == 429
    assert refused.json()["code"] == "rate_limited"
    assert refused.json()["retryable"] is True
    assert 900 < int(refused.headers["Retry-After"]) <= 1000
    for path in ("/livez", "/readyz", "/metrics"):
        assert running.client.get(path).status_code == 200


def test_each_key_has_its_own_rate_and_guesses_are_limited(
    start_server: StartServer, key_file: Path
) -> None:
    running = start_server(
        ColourEngine(), api_keys_file=key_file, rate_limit_per_s=0.001, rate_limit_burst=1
    )

    def ask(key: str) -> int:
        return running.client.get("/models", headers={"X-API-Key": key}).status_code

    assert [ask(FIRST), ask(FIRST), ask(SECOND), ask(SECOND)] == [200, 429, 200, 429]
    assert [ask("guess-1"), ask("guess-2"), ask("guess-3")] == [401, 429, 429]


def test_forwarded_addresses_count_only_from_trusted_proxies(start_server: StartServer) -> None:
    limits = {"rate_limit_per_s": 0.001, "rate_limit_burst": 1}

    def statuses(running: RunningServer, *addresses: str) -> list[int]:
        return [
            running.client.get("/models", headers={"X-Forwarded-For": address}).status_code
            for address in addresses
        ]

    open_to_lies = start_server(ColourEngine(), **limits)
    assert statuses(open_to_lies, "1.1.1.1", "1.1.1.2") == [200, 429]
    behind = start_server(ColourEngine(), **limits, trusted_proxies=("127.0.0.0/8",))
    assert statuses(behind, "1.1.1.1", "1.1.1.2", "9.9.9.9, 1.1.1.1") == [200, 200, 429]
    networks = ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "not an address")
    assert statuses(behind, *networks) == [200, 429, 200, 200]


ORIGIN = "https://example.org"


def test_pages_of_other_origins_may_not_ask_by_default(server: RunningServer) -> None:
    answer = server.client.get("/models", headers={"Origin": ORIGIN})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_origins_of_the_setting_may_ask(start_server: StartServer, key_file: Path) -> None:
    running = start_server(ColourEngine(), cors_origins=(ORIGIN,), api_keys_file=key_file)
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    allowed = running.client.options("/detect", headers={"Origin": ORIGIN, **asked})
    assert allowed.status_code == 200
    assert allowed.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert allowed.headers["Access-Control-Allow-Headers"] == "x-api-key"
    refused = running.client.options("/detect", headers={"Origin": "https://evil.org", **asked})
    assert refused.status_code == 400
    assert "Access-Control-Allow-Origin" not in refused.headers
    without_key = running.client.post("/detect", headers={"Origin": ORIGIN})
    assert without_key.status_code == 401
    assert without_key.headers["Access-Control-Allow-Origin"] == ORIGIN
    exposed = without_key.headers["Access-Control-Expose-Headers"]
    assert {"Server-Timing", "X-Request-ID", "Retry-After"} <= set(exposed.split(", "))
    stranger = running.client.get("/livez", headers={"Origin": "https://evil.org"})
    assert "Access-Control-Allow-Origin" not in stranger.headers


def test_every_answer_has_the_security_headers(server: RunningServer) -> None:
    answers = [
        server.client.post("/detect", content=IMAGE),
        server.client.post("/detect"),
        *(server.client.get(path) for path in ("/livez", "/metrics", "/none", "/docs")),
    ]
    for answer in answers:
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "server" not in answer.headers


def test_the_policy_of_the_docs_page_lets_it_load_what_it_names(server: RunningServer) -> None:
    page = server.client.get("/docs")
    policy = page.headers["Content-Security-Policy"]
    sources = dict(part.strip().partition(" ")[::2] for part in policy.split(";"))
    for needed, directive in (
        ('<script src="https://cdn.jsdelivr.net/', "script-src"),
        ('href="https://cdn.jsdelivr.net/', "style-src"),
        ('href="https://fastapi.tiangolo.com/', "img-src"),
    ):
        assert needed in page.text
        assert needed.partition('"')[2].rstrip("/") in sources[directive].split()
    assert sources["connect-src"] == "'self'"
