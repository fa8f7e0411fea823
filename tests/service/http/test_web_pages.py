"""The web page at / and Swagger UI at /docs, without a browser; tests/page has those with one."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
from support.images import encode, plain
from support.serving import ColourEngine, RunningServer

from service.http.web_pages import _FILES

MAX_FIRST_VIEW_BYTES = 100_000
PAGES = ("/", "/docs")
SAMPLES = {
    "blood_smear": "docs/samples",
    "people": "docs/samples/people",
    "road": "docs/samples/road_scenes/image_2",
}


def sources_of(response: httpx.Response) -> dict[str, str]:
    """Return the directives of the content security policy."""
    policy = response.headers["Content-Security-Policy"]
    return dict(part.strip().partition(" ")[::2] for part in policy.split(";"))


@pytest.mark.parametrize("path", PAGES)
def test_the_policy_allows_only_files_of_the_service(server: RunningServer, path: str) -> None:
    sources = sources_of(server.client.get(path))
    assert sources["default-src"] == "'none'"
    for directive in ("script-src", "style-src", "connect-src"):
        assert sources[directive] == "'self'"
    for directive in ("base-uri", "form-action", "frame-ancestors"):
        assert sources[directive] == "'none'"


@pytest.mark.parametrize("path", PAGES)
def test_pages_have_no_inline_code_and_name_no_other_host(server: RunningServer, path: str) -> None:
    text = server.client.get(path).text
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon[a-z]+=", text)
    assert not re.search(r"(?:src|href)=\"(?:[a-z]+:|//)", text)


@pytest.mark.parametrize("path", PAGES)
def test_every_file_that_a_page_names_is_served(server: RunningServer, path: str) -> None:
    text = server.client.get(path).text
    names = set(re.findall(r'(?:src|href)="([^"#]+)"', text))
    assert names
    for name in names:
        assert server.client.get(urljoin(path, name)).status_code == 200


@pytest.mark.parametrize("path", sorted(_FILES))
def test_files_have_a_type_and_are_cached(server: RunningServer, path: str) -> None:
    response = server.client.get(path, headers={"Accept-Encoding": "identity"})
    assert response.status_code == 200
    assert response.headers["Content-Type"].partition(";")[0] in {
        *("text/html", "text/css", "text/javascript"),
        *("image/svg+xml", "image/jpeg", "image/webp"),
    }
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    known = {"If-None-Match": response.headers["ETag"], "Accept-Encoding": "identity"}
    unchanged = server.client.get(path, headers=known)
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert unchanged.headers["ETag"] == response.headers["ETag"]
    changed = server.client.get(path, headers={"If-None-Match": '"of another version"'})
    assert changed.status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/page/page.js", "/page/people_1.jpg"])
def test_head_returns_the_headers_of_get(server: RunningServer, path: str) -> None:
    get, head = server.client.get(path), server.client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("Content-Type", "ETag", "Content-Security-Policy", "Content-Length"):
        assert head.headers.get(name) == get.headers.get(name)


@pytest.mark.parametrize("path", ["/page/page.js", "/metrics"])
@pytest.mark.parametrize(
    ("accepted", "is_compressed"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("br", False),
    ],
)
def test_text_is_compressed_for_clients_that_accept_it(
    server: RunningServer, path: str, accepted: str, is_compressed: bool
) -> None:
    with server.client.stream("GET", path, headers={"Accept-Encoding": accepted}) as response:
        raw = b"".join(response.iter_raw())
    assert ("Content-Encoding" in response.headers) == is_compressed
    assert response.headers["Vary"] == "Accept-Encoding"
    begin = {"/page/page.js": b"// The page", "/metrics": b"# HELP "}[path]
    assert (gzip.decompress(raw) if is_compressed else raw).startswith(begin)


def test_compressed_and_plain_text_have_their_own_validators(server: RunningServer) -> None:
    plain_text = server.client.get("/page/page.js", headers={"Accept-Encoding": "identity"})
    compressed = server.client.get("/page/page.js", headers={"Accept-Encoding": "gzip"})
    assert compressed.content == plain_text.content
    assert compressed.headers["ETag"] != plain_text.headers["ETag"]


def test_images_are_not_compressed_again(server: RunningServer) -> None:
    response = server.client.get("/page/people_1.jpg", headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in response.headers


def test_the_first_view_is_small_without_compression(server: RunningServer) -> None:
    first = ["/", *(path for path in _FILES if path.startswith("/page/"))]
    first = [path for path in first if not path.endswith(".jpg")]  # loaded when they are chosen
    headers = {"Accept-Encoding": "identity"}
    sizes = {path: len(server.client.get(path, headers=headers).content) for path in first}
    assert sum(sizes.values()) < MAX_FIRST_VIEW_BYTES, sizes


@pytest.mark.parametrize(
    "path",
    [
        *("/page/", "/page/none.js", "/page/index.html", "/page/../app.py", "/page/..%2Fapp.py"),
        *("/page/%2e%2e/auth.py", "/page/page.js/", "/page/page.js%00", "/docs/main.py"),
        *("/docs/..%2f__init__.py", "/page//etc/passwd", "/page/%2Fetc%2Fpasswd"),
    ],
)
def test_only_listed_files_are_served(server: RunningServer, path: str) -> None:
    # As the client wrote it: httpx would resolve dots.
    request = server.client.build_request("GET", "/page/x")
    request.url = request.url.copy_with(raw_path=path.encode())
    response = server.client.send(request)
    assert response.status_code == 404
    assert response.json()["code"] == "not_found"


def test_other_methods_are_rejected(server: RunningServer) -> None:
    response = server.client.post("/", content=b"x")
    assert response.status_code == 405
    assert response.json()["code"] == "method_not_allowed"


def test_the_pages_need_no_key_and_are_not_rate_limited(
    start_server: Callable[..., RunningServer], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first-key-0123456789\n")
    running = start_server(
        ColourEngine(), api_keys_file=keys, rate_limit_per_s=0.001, rate_limit_burst=1
    )
    for _ in range(3):
        assert [running.client.get(path).status_code for path in PAGES] == [200, 200]
    assert running.client.post("/detect", content=encode(plain(1, 2))).status_code == 401


def test_files_are_counted_by_route(server: RunningServer) -> None:
    labels = {"route": "/page/{name}", "method": "GET", "status": "200"}
    before = server.metric("centernet_http_requests_total", **labels)
    for name in ("page.js", "page.css"):
        server.client.get(f"/page/{name}")
    assert server.metric("centernet_http_requests_total", **labels) == before + 2


def test_the_samples_are_those_of_the_documentation(project: Path) -> None:
    samples = sorted((project / "service/http/page").glob("*.jpg"))
    assert len(samples) == 6
    for sample in samples:
        kind = next(kind for kind in SAMPLES if sample.name.startswith(kind))
        assert sample.read_bytes() == (project / SAMPLES[kind] / sample.name).read_bytes()


def test_every_file_of_the_page_is_served(project: Path) -> None:
    served = {path.name for path in _FILES.values()}
    assert {path.name for path in (project / "service/http/page").iterdir()} <= served
