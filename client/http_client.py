"""Send images to a running service over HTTP."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

_HINT = "is this a CenterNet service?"


class ClientError(RuntimeError):
    """The service cannot be reached, refused the request, or is not a CenterNet service."""


class ServiceClient:
    """A client of the service at ``url``; one instance may be used by several threads.

    Every method raises :class:`ClientError`. For an error response its text holds the status and
    the ``detail`` of the problem document.
    """

    def __init__(self, url: str, timeout_s: float = 60.0) -> None:
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        try:
            self._http = httpx.Client(base_url=self._url, timeout=timeout_s, follow_redirects=True)
        except httpx.InvalidURL as error:
            raise ClientError(_invalid_url(url, error)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def detect(
        self,
        image: bytes,
        *,
        model: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the JSON response to one encoded image; the default model is used for None.

        ``options`` become the query string: a list gives one parameter per element, a bool
        ``true`` or ``false``.
        """
        return self._request(
            "POST",
            "/detect" if model is None else f"{_model_path(model)}/detect",
            "detections",
            content=image,
            headers={"Content-Type": "application/octet-stream"},
            params=dict(options or {}),
        )

    def list_models(self) -> list[dict[str, Any]]:
        """Return the service's models; the default one has ``default`` true."""
        models: list[dict[str, Any]] = self._request("GET", "/models", "models")["models"]
        return models

    def get_model(self, name: str) -> dict[str, Any]:
        """Return the description of one model, including its manifest."""
        return self._request("GET", _model_path(name), "manifest")

    def _request(self, method: str, path: str, field: str, **arguments: Any) -> dict[str, Any]:
        """Return the JSON object of the response, which must have ``field``."""
        url = f"{self._url}{path}"
        try:
            with self._http.stream(method, path, **arguments) as response:
                if not response.is_success:
                    raise ClientError(f"{response.status_code} {_error_detail(response)}")
                response.read()
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ClientError(_invalid_url(self._url, error)) from None
        except httpx.TimeoutException:
            raise ClientError(f"{url} did not respond within {self._timeout_s:g} s") from None
        except (httpx.RemoteProtocolError, httpx.DecodingError) as error:
            raise ClientError(f"{url} sent an invalid HTTP response: {error}") from None
        except httpx.RequestError as error:
            raise ClientError(f"{url} cannot be reached: {error}") from None
        content = _json_object(response)
        if field not in content:
            raise ClientError(f"{url}: the response has no {field!r}: {_HINT}")
        return content


def _model_path(name: str) -> str:
    return f"/models/{quote(name, safe='')}"


def _invalid_url(url: str, error: Exception) -> str:
    return f"{url} is not a valid URL: {error} Expected one such as http://127.0.0.1:8000."


def _error_detail(response: httpx.Response) -> str:
    """Return the ``detail`` of an error response, or its reason phrase where it has none."""
    try:
        response.read()
    except httpx.RequestError:
        detail = None
    else:
        detail = _json_object(response).get("detail")
    return f"{response.reason_phrase}: {_HINT}" if detail is None else str(detail)


def _json_object(response: httpx.Response) -> dict[str, Any]:
    """Return the JSON object in the body, empty where there is none."""
    try:
        content = response.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
