"""The web page at ``/`` and Swagger UI at ``/docs``: files of this package and of fastapi-swagger.

They need no API key, since they contain no data of the service: their scripts send the key.
"""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePath

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from service.http.compression import choose_encoding

web_pages = APIRouter(include_in_schema=False)
"""Pages for browsers; open."""

_PAGE = files("service.http") / "page"
_SWAGGER_UI = files("fastapi_swagger") / "resources"
# The files that are served, by URL path: nothing of a request becomes a file name.
_FILES: Mapping[str, Traversable] = {
    "/": _PAGE / "index.html",
    "/docs": _PAGE / "docs.html",
    **{f"/page/{file.name}": file for file in _PAGE.iterdir() if not file.name.endswith(".html")},
    **{f"/docs/{name}": _SWAGGER_UI / name for name in ("swagger-ui-bundle.js", "swagger-ui.css")},
}
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'{images}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_POLICIES = {
    "/": _POLICY.format(images="") + "; require-trusted-types-for 'script'",
    "/docs": _POLICY.format(images=" data:"),  # Swagger UI's style sheet contains its icons
}


@dataclass(frozen=True)
class _File:
    media_type: str
    content: bytes
    compressed: bytes | None
    """None for image formats, which are compressed already."""
    etag: str


# A plain function: FastAPI runs it in a thread, where compression does not delay other requests.
@web_pages.head("/")
@web_pages.get("/")
@web_pages.head("/docs")
@web_pages.get("/docs")
@web_pages.head("/page/{name}")
@web_pages.get("/page/{name}")
@web_pages.head("/docs/{name}")
@web_pages.get("/docs/{name}")
def get_file(request: Request) -> Response:
    """Return a file, compressed if the client accepts gzip, or 304 if the client has it."""
    path = request.scope["path"].removeprefix(request.scope["root_path"])
    if path not in _FILES:
        raise HTTPException(404)
    file = _read(path)
    # The client asks each time whether the file has changed, so that pages fit the service.
    headers = {"Cache-Control": "no-cache", "ETag": file.etag}
    if path in _POLICIES:
        headers["Content-Security-Policy"] = _POLICIES[path]
    content = file.content
    if file.compressed is not None:
        headers["Vary"] = "Accept-Encoding"
        if choose_encoding(request.headers, ["gzip"]):
            headers["Content-Encoding"] = "gzip"
            # Another representation has another strong validator.
            headers["ETag"] = f'{file.etag[:-1]}-gzip"'
            content = file.compressed
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        headers.pop("Content-Encoding", None)
        return Response(status_code=304, headers=headers)
    return Response(content, 200, headers, file.media_type)


@cache
def _read(path: str) -> _File:
    content = _FILES[path].read_bytes()
    suffix = PurePath(_FILES[path].name).suffix
    return _File(
        _MEDIA_TYPES[suffix],
        content,
        None if suffix in {".jpg", ".webp"} else gzip.compress(content, mtime=0),
        f'"{hashlib.sha256(content).hexdigest()[:32]}"',
    )
