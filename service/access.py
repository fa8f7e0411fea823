"""Authentication by API key, and rate limiting; both before the body is read."""

import binascii
import hashlib
import hmac
import math
from collections.abc import Mapping
from pathlib import Path

from service.errors import RateLimitedError, UnauthorizedError
from service.observability.request_record import RequestRecord
from service.rate_limit import RateLimiter, client_network

KEY_HEADER = "X-API-Key"
MIN_KEY_LENGTH = 16
_MAX_FILE_BYTES = 1024 * 1024


class KeyFileError(Exception):
    """The file of API keys is not valid; the message never contains a key."""


class ApiKeys:
    """The API keys of one file, stored as SHA-256 digests."""

    def __init__(self, digests: dict[str, bytes]) -> None:
        self._digests = digests

    @classmethod
    def read(cls, path: Path) -> "ApiKeys":
        """Read a file with one key per line; empty and ``#`` lines are ignored.

        Raises :class:`KeyFileError`.
        """
        try:
            with path.open("rb") as file:
                content = file.read(_MAX_FILE_BYTES + 1)
        except OSError as error:
            raise KeyFileError(f"api_keys_file {path}: {error.strerror}") from None
        if len(content) > _MAX_FILE_BYTES:
            raise KeyFileError(f"api_keys_file {path}: more than {_MAX_FILE_BYTES} bytes")
        digests: dict[str, bytes] = {}
        for number, line in enumerate(content.splitlines(), 1):
            key = line.strip()
            if not key or key.startswith(b"#"):
                continue
            if len(key) < MIN_KEY_LENGTH or not all(0x21 <= byte <= 0x7E for byte in key):
                raise KeyFileError(
                    f"api_keys_file {path}: line {number} is not a key. A key has at least "
                    f"{MIN_KEY_LENGTH} printable ASCII characters and no spaces, for example what "
                    "`openssl rand -hex 32` prints."
                )
            digests[f"key_{number}"] = hashlib.sha256(key).digest()
        if not digests:
            raise KeyFileError(f"api_keys_file {path}: it contains no key. Put one on each line")
        return cls(digests)

    def name_of(self, headers: Mapping[str, str]) -> str | None:
        """Return ``key_LINE`` for a valid key in the headers, None otherwise."""
        key = _received_key(headers)
        return None if key is None else self.name_of_key(key)

    def name_of_key(self, key: str) -> str | None:
        """Return ``key_LINE`` for a valid key, None otherwise."""
        digest = hashlib.sha256(key.encode(errors="surrogatepass")).digest()
        # Compare with every key in constant time, so that the duration reveals nothing.
        names = [
            name for name, known in self._digests.items() if hmac.compare_digest(known, digest)
        ]
        return names[0] if names else None


def _received_key(headers: Mapping[str, str]) -> str | None:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    # The header of its own first: a proxy may ask for Basic credentials of its own.
    return headers.get(KEY_HEADER.lower()) or _basic_password(scheme, credentials)


def _basic_password(scheme: str, credentials: str) -> str | None:
    """Return the password of HTTP Basic authentication, for clients that have no other kind."""
    if scheme.lower() != "basic":
        return None
    try:
        user_and_password = binascii.a2b_base64(credentials.strip()).decode()
    except ValueError:  # binascii.Error and UnicodeDecodeError too
        return None
    _, separator, password = user_and_password.partition(":")
    return password if separator else None


class Access:
    """Authentication and rate limiting of requests, whatever their protocol.

    ``headers`` of the methods: HTTP headers or gRPC metadata, by name in lower case. ``record``:
    the record of the request, whose ``client`` is the address of the client until a valid key is
    found, and then the name of the key.
    """

    def __init__(self, keys: ApiKeys | None, limiter: RateLimiter | None) -> None:
        self._keys = keys
        self._limiter = limiter

    def require_key(self, headers: Mapping[str, str], record: RequestRecord) -> None:
        """Raise :class:`UnauthorizedError` unless the request has a key, if keys are configured."""
        self._check_key(headers, self._authenticate(headers, record))

    def require_key_and_rate(self, headers: Mapping[str, str], record: RequestRecord) -> None:
        """Check the rate limit as :meth:`limit_rate` does, then the API key as :meth:`require_key`.

        Raises :class:`RateLimitedError` and :class:`UnauthorizedError`.
        """
        self._check_key(headers, self.limit_rate(headers, record))

    @property
    def needs_key(self) -> bool:
        """Whether API keys are configured."""
        return self._keys is not None

    def limit_rate(self, headers: Mapping[str, str], record: RequestRecord) -> str | None:
        """Check the rate limit and return the name of the key, None without a valid one.

        The limit applies per key, or per address for requests without a valid key, so that
        guessing keys is limited as well. Raises :class:`RateLimitedError`.
        """
        key_name = self._authenticate(headers, record)
        if self._limiter is not None:
            wait_s = self._limiter.wait_s(key_name or client_network(record.client))
            if wait_s:
                raise RateLimitedError(
                    "This client exceeded its rate limit. Send the request again after the time in "
                    "Retry-After.",
                    retry_after_s=math.ceil(wait_s),
                )
        return key_name

    def check_body_key(self, key: str, record: RequestRecord) -> None:
        """Check a key that is a field of the body; raises :class:`UnauthorizedError`."""
        if self._keys is not None:
            key_name = self._keys.name_of_key(key)
            if key_name is None:
                raise _unauthorized("an unknown API key" if key else "no API key")
            record.client = key_name

    def _authenticate(self, headers: Mapping[str, str], record: RequestRecord) -> str | None:
        key_name = self._keys.name_of(headers) if self._keys else None
        if key_name is not None:
            record.client = key_name
        return key_name

    def _check_key(self, headers: Mapping[str, str], key_name: str | None) -> None:
        if self._keys is None or key_name is not None:
            return
        received = "no API key" if _received_key(headers) is None else "an unknown API key"
        raise _unauthorized(received)


def _unauthorized(received: str) -> UnauthorizedError:
    return UnauthorizedError(
        f"The request has {received}. Send one as 'Authorization: Bearer KEY' or as "
        f"'{KEY_HEADER}: KEY'."
    )
