"""The images of Label Studio's tasks: in the task as data URIs, or from one Label Studio.

A task that anybody may have imported decides which address is requested, so only files of the
Label Studio in the settings are: no other origin, no redirect, and none of its other pages.
"""

import asyncio
import base64
import logging
import re
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import unquote, urlsplit

from service.cancellation import CancelScope, Timeout
from service.detection_requests import Claim
from service.errors import BodyTooLargeError, ImageAddressError, ImageFetchError
from service.http.request_body import decode_base64
from service.settings import Settings

if TYPE_CHECKING:
    import httpx

_FILES = re.compile(r"/(data|storage-data)/.+|/(tasks|projects)/[0-9]+/(resolve|presign)/")
"""Paths of Label Studio that return a file."""
_STORAGES = ("s3://", "gs://", "azure-blob://")
_PERSONAL_TOKEN = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+")
"""A JSON Web Token, which is exchanged for a short-lived one; other tokens are sent themselves."""
_ACCESS_S = 60.0
"""Seconds for which a short-lived token is used: Label Studio issues them for five minutes."""
_MAX_TOKEN_BYTES = 16 * 1024
_MAX_SHOWN = 200
"""Characters of an address that an error text quotes."""


class TokenFileError(Exception):
    """The file with the token of Label Studio is invalid; the message does not contain it."""


class TaskImages:
    """The images of tasks.

    Reads the token for ``settings.label_studio_url``, if that is set. Raises
    :class:`TokenFileError`.
    """

    def __init__(self, settings: Settings) -> None:
        self._max_bytes = settings.max_body_bytes
        self._timeout_s = settings.body_timeout_s
        self._url = settings.label_studio_url and settings.label_studio_url.rstrip("/")
        self._client: httpx.AsyncClient | None = None
        if self._url is not None and settings.label_studio_token_file is not None:
            self._token = _read_token(settings.label_studio_token_file)
            self._client = _open_client()
            self._access_token, self._access_until = "", 0.0
            self._refreshing = asyncio.Lock()

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def read(self, address: object, task_id: object, claim: Claim) -> bytes:
        """Return the encoded image at the address that is in a task.

        ``claim`` is called with sizes in bytes. Raises :class:`ImageAddressError`,
        :class:`ImageFetchError`, :class:`BodyTooLargeError`, :class:`BadJsonError` and the errors
        of ``claim``.
        """
        if not isinstance(address, str) or not address:
            raise ImageAddressError(
                f"The image of the task is of type {type(address).__name__}. It must be the "
                "address of one image, as a string."
            )
        if address.startswith("data:"):
            return await decode_base64(address, claim)
        if self._client is None or self._url is None:
            raise ImageAddressError(
                f"The image of the task is at {_show(address)}. This service requests no images "
                "unless it is started with --label-studio-url and --label-studio-token-file."
            )
        url = _file_url(self._url, address, task_id)
        with CancelScope(Timeout(self._timeout_s, lambda: _too_slow(address, self._timeout_s))):
            return await self._fetch(self._client, url, address, claim)

    async def _fetch(
        self, client: "httpx.AsyncClient", url: str, address: str, claim: Claim
    ) -> bytes:
        import httpx

        try:
            headers = {"Authorization": await self._authorization(client)}
            async with client.stream("GET", url, headers=headers) as response:
                if response.status_code != 200:
                    _reject(response, address)
                chunks, size = [], 0
                # Raw: a compressed body is not expanded beyond the limit.
                async for chunk in response.aiter_raw():
                    size += len(chunk)
                    if size > self._max_bytes:
                        raise BodyTooLargeError(
                            f"The image {_show(address)} has more than {self._max_bytes} bytes. "
                            "Scale it down or compress it more."
                        )
                    claim(len(chunk))
                    chunks.append(chunk)
                return b"".join(chunks)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ImageFetchError(
                f"The image {_show(address)} could not be requested from Label Studio: "
                f"{type(error).__name__}. Check that --label-studio-url is right and that this "
                "service can reach it."
            ) from None

    async def _authorization(self, client: "httpx.AsyncClient") -> str:
        if not _PERSONAL_TOKEN.fullmatch(self._token):
            return f"Token {self._token}"
        async with self._refreshing:
            if time.monotonic() >= self._access_until:
                reply = await client.post(
                    f"{self._url}/api/token/refresh/", json={"refresh": self._token}
                )
                if reply.status_code != 200:
                    raise ImageFetchError(
                        f"Label Studio answered {reply.status_code} to the personal access token. "
                        "Write a new one to the file of --label-studio-token-file."
                    )
                try:
                    self._access_token = str(reply.json()["access"])
                except (ValueError, KeyError, TypeError):
                    raise ImageFetchError(
                        "The server at --label-studio-url does not answer as Label Studio does. "
                        "Check the address."
                    ) from None
                self._access_until = time.monotonic() + _ACCESS_S
        return f"Bearer {self._access_token}"


def _read_token(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_TOKEN_BYTES + 1)
    except OSError as error:
        raise TokenFileError(f"label_studio_token_file {path}: {error.strerror}") from None
    token = content.strip()
    if not token or len(content) > _MAX_TOKEN_BYTES or not all(0x21 <= b <= 0x7E for b in token):
        raise TokenFileError(
            f"label_studio_token_file {path}: not a token. The file contains one line, the access "
            "token of a Label Studio user."
        )
    return token.decode("ascii")


def _open_client() -> "httpx.AsyncClient":
    # Imported only where it is used: it takes 0.1 s.
    import httpx

    # It logs every address at the level info; those of requests are not logged either.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # The time of each image is limited as a whole. A proxy from the environment is not used.
    return httpx.AsyncClient(
        verify=ssl.create_default_context(),
        timeout=None,
        trust_env=False,
        headers={"Accept-Encoding": "identity", "User-Agent": "centernet-serving"},
    )


def _file_url(base: str, address: str, task_id: object) -> str:
    """Return the URL of a file of the Label Studio at ``base``.

    Raises :class:`ImageAddressError` for any other address.
    """
    parts = urlsplit(base)
    origin = f"{parts.scheme}://{parts.netloc}"
    if address.startswith(_STORAGES):
        if not isinstance(task_id, int):
            raise ImageAddressError(
                f"The image of the task is at {_show(address)}. Label Studio is asked for it with "
                "the id of the task, which is missing."
            )
        # Label Studio sends the file itself if pre-signed URLs are turned off for the storage.
        file = base64.urlsafe_b64encode(address.encode(errors="replace")).decode()
        return f"{base}/tasks/{task_id}/resolve/?fileuri={file}"
    if not address.startswith(("/", f"{origin}/")):
        raise ImageAddressError(
            f"The image of the task is at {_show(address)}. Images are requested from {origin} "
            "only. Import the image into Label Studio, or connect its storage there."
        )
    path, _, query = address.removeprefix(origin).removeprefix(parts.path).partition("?")
    decoded = unquote(path)
    if not _FILES.fullmatch(path) or "\\" in decoded or {".", ".."} & set(decoded.split("/")):
        raise ImageAddressError(
            f"The image of the task is at {_show(address)}, which is not a file of Label Studio. "
            "The paths of its files begin with /data/ or /storage-data/."
        )
    return f"{base}{path}" + (f"?{query}" if query else "")


def _reject(response: "httpx.Response", address: str) -> NoReturn:
    advice = "Check that the file exists and that the user of the token may see the project."
    if response.is_redirect:
        advice = (
            "Redirects are not followed. Turn off pre-signed URLs for the storage, and give "
            "--label-studio-url as browsers use it."
        )
    raise ImageFetchError(
        f"Label Studio answered {response.status_code} to the request for {_show(address)}. "
        f"{advice}"
    )


def _too_slow(address: str, timeout_s: float) -> ImageFetchError:
    return ImageFetchError(
        f"The image {_show(address)} did not arrive from Label Studio within {timeout_s:g} s."
    )


def _show(address: str) -> str:
    return repr(address[:_MAX_SHOWN])
