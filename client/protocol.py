"""The requests of the service and its responses, without the connection."""

import math
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, TypedDict
from urllib.parse import quote

import httpx

from client.errors import (
    ClientError,
    ConnectionFailedError,
    InvalidResponseError,
    InvalidUrlError,
    ResponseError,
    ResponseTimeoutError,
)

DEADLINE_HEADER = "X-Deadline-Ms"
MAX_DEADLINE_MS = 3_600_000
_RETRYABLE_STATUSES = frozenset({408, 429, 502, 503, 504})
_HINT = "is this a CenterNet service?"


class DetectOptions(TypedDict, total=False):
    """Options of a detection request; those that are absent or None have the model's defaults.

    ``GET /models/{name}`` lists those that a model supports.
    """

    score_threshold: float | None
    top_k: int | None
    classes: Sequence[str] | None
    flip: bool | None
    scales: Sequence[float] | None
    keep_resolution: bool | None
    soft_nms: bool | None
    fx: float | None
    fy: float | None
    cx: float | None
    cy: float | None
    projection: Sequence[float] | None


@dataclass(frozen=True)
class Call:
    """One request: method, path below the URL of the service, query and body."""

    method: str
    path: str
    query: Mapping[str, Any]
    body: bytes | None = None


def detect_call(image: bytes, model: str | None, options: DetectOptions) -> Call:
    """Return the request for the detections of one encoded image."""
    path = "/detect" if model is None else f"{_model_path(model)}/detect"
    query = {name: value for name, value in options.items() if value is not None}
    return Call("POST", path, query, image)


def list_models_call() -> Call:
    """Return the request for the list of models."""
    return Call("GET", "/models", {})


def get_model_call(name: str) -> Call:
    """Return the request for the description of one model."""
    return Call("GET", _model_path(name), {})


def _model_path(name: str) -> str:
    return f"/models/{quote(name, safe='')}"


def http_settings(url: str, api_key: str | None) -> dict[str, Any]:
    """Return the arguments of ``httpx.Client`` and ``httpx.AsyncClient``.

    Raises :class:`ClientError` for an API key that cannot be sent; the message does not contain it.
    """
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise ClientError("The API key has characters other than printable ASCII.")
    return {
        "base_url": url.rstrip("/"),
        "headers": {} if api_key is None else {"Authorization": f"Bearer {api_key}"},
        "follow_redirects": True,
        "verify": _tls_context(),
        # The caller limits its concurrency. httpx keeps only 20 idle connections by default, so
        # that others would be opened for each request.
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=None),
    }


@cache
def _tls_context() -> ssl.SSLContext:
    """Return the context of all clients; loading the certificates takes 20 ms."""
    return httpx.create_ssl_context()


def http_arguments(call: Call, timeout_s: float) -> dict[str, Any]:
    """Return the arguments of ``request()`` of the httpx clients."""
    headers = {}
    if call.body is not None:
        deadline_ms = min(max(math.ceil(1000 * timeout_s), 1), MAX_DEADLINE_MS)
        headers = {
            "Content-Type": "application/octet-stream",
            DEADLINE_HEADER: str(deadline_ms),
        }
    return {
        "method": call.method,
        "url": call.path,
        "params": dict(call.query),
        "content": call.body,
        "headers": headers,
        "timeout": timeout_s,
    }


@contextmanager
def translated_errors(url: str, timeout_s: float) -> Iterator[None]:
    """Raise the exceptions of httpx as :class:`ClientError`."""
    try:
        yield
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise invalid_url(url, error) from None
    except httpx.TimeoutException:
        raise ResponseTimeoutError(f"{url} did not respond within {timeout_s:.3g} s") from None
    except (httpx.DecodingError, httpx.TooManyRedirects) as error:
        raise InvalidResponseError(f"{url} sent an invalid HTTP response: {error}") from None
    except httpx.RemoteProtocolError as error:
        # Also the end of the connection, as when the service restarts.
        raise ConnectionFailedError(f"{url} sent an invalid HTTP response: {error}") from None
    except httpx.RequestError as error:
        raise ConnectionFailedError(f"{url} cannot be reached: {error}") from None


def invalid_url(url: str, error: Exception) -> ClientError:
    """Return the error of a URL that httpx does not accept."""
    return InvalidUrlError(
        f"{url} is not a valid URL: {error} Expected one such as http://127.0.0.1:8000."
    )


def read_response(response: httpx.Response) -> dict[str, Any]:
    """Return the JSON object of a response.

    Raises :class:`ResponseError` for an error, :class:`InvalidResponseError` if the body is not a
    JSON object.
    """
    content = _json_object(response)
    if response.is_success:
        if content is None:
            raise InvalidResponseError(f"{response.url}: the response is not JSON: {_HINT}")
        return content
    status = response.status_code
    problem = content if content is not None and "detail" in content else {}
    may_succeed = status in (408, 429) or status >= 500
    raise ResponseError(
        status,
        problem,
        str(problem.get("detail", f"{response.reason_phrase}: {_HINT}")),
        retryable=may_succeed and bool(problem.get("retryable", status in _RETRYABLE_STATUSES)),
        retry_after_s=_retry_after_s(response.headers.get("Retry-After")),
    )


def _json_object(response: httpx.Response) -> dict[str, Any] | None:
    try:
        content = response.json()
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _retry_after_s(value: str | None) -> float | None:
    """Read ``Retry-After``: seconds or an HTTP date; None if it is absent or invalid."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max((at - datetime.now(UTC)).total_seconds(), 0.0)
