"""Who may ask, and how often: evaluated from a request's head, before its body is read."""

import hashlib
import hmac
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import Request

from service.errors import RateLimitedError, UnauthorizedError

KEY_HEADER = "X-API-Key"
MIN_KEY_LENGTH = 16
MAX_CLIENTS = 10_000
_MAX_FILE_BYTES = 1024 * 1024


class KeyFileError(Exception):
    """The file of API keys cannot be used; the text never contains a key."""


class ApiKeys:
    """The keys of one file; what is kept of them are digests."""

    def __init__(self, digests: dict[str, bytes]) -> None:
        self._digests = digests

    @classmethod
    def read(cls, path: Path) -> "ApiKeys":
        """Read a file with one key per line; empty lines and lines with ``#`` in front are none.

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
                    f"api_keys_file {path}: line {number} is no key. A key has at least "
                    f"{MIN_KEY_LENGTH} printable ASCII characters and no spaces, for example what "
                    "`openssl rand -hex 32` prints."
                )
            digests[f"key_{number}"] = hashlib.sha256(key).digest()
        if not digests:
            raise KeyFileError(f"api_keys_file {path}: there is no key in it. Put one on each line")
        return cls(digests)

    def holder_of(self, headers: Headers) -> str | None:
        """``key_`` and the line of the key that a request brought; None if it brought none."""
        offered = _offered_key(headers)
        if offered is None:
            return None
        digest = hashlib.sha256(offered.encode("latin-1")).digest()
        # Every key is compared, and to the end: the time says nothing about any of them.
        found = [name for name, key in self._digests.items() if hmac.compare_digest(key, digest)]
        return found[0] if found else None


def _offered_key(headers: Headers) -> str | None:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    return headers.get(KEY_HEADER)


class RateLimiter:
    """A token bucket per client, as one number each: the time at which its bucket is full again.

    At most ``MAX_CLIENTS`` are remembered; the one that was silent longest is forgotten, which
    gives it a full bucket.
    """

    def __init__(
        self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval_s = 1 / per_second
        self._burst_s = burst * self._interval_s
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        """Clients that are remembered."""
        return len(self._full_at)

    def wait_s(self, client: str) -> float:
        """Take a token and return 0; or take none and return the seconds until there is one."""
        now = self._clock()
        full_at = max(now, self._full_at.pop(client, now)) + self._interval_s
        wait_s = full_at - now - self._burst_s
        # A refusal costs nothing, and a millionth of a second is the noise of the sums.
        self._full_at[client] = full_at if wait_s <= 1e-6 else full_at - self._interval_s
        if len(self._full_at) > MAX_CLIENTS:
            self._full_at.popitem(last=False)
        return wait_s if wait_s > 1e-6 else 0.0


class Access:
    """The door: dependencies of the routes that are not open to everybody."""

    def __init__(self, keys: ApiKeys | None, limiter: RateLimiter | None) -> None:
        self._keys = keys
        self._limiter = limiter

    async def with_key(self, request: Request) -> None:
        """Raise :class:`UnauthorizedError` unless the request brings a key, where there are any."""
        self._check_key(request, self._holder(request))

    async def within_rate(self, request: Request) -> None:
        """As :meth:`with_key`; also raises :class:`RateLimitedError`.

        The rate belongs to the key, or to the address of who has none, so that guessing keys is
        limited as well.
        """
        holder = self._holder(request)
        if self._limiter is not None:
            client = holder or _network_of(request)
            wait_s = self._limiter.wait_s(client)
            if wait_s:
                raise RateLimitedError(
                    "This client sends more requests than one client may. Send it again after the "
                    "time in Retry-After.",
                    retry_after_s=math.ceil(wait_s),
                )
        self._check_key(request, holder)

    def _holder(self, request: Request) -> str | None:
        holder = self._keys.holder_of(request.headers) if self._keys else None
        if holder is not None:
            request.scope["record"].client = holder
        return holder

    def _check_key(self, request: Request, holder: str | None) -> None:
        if self._keys is None or holder is not None:
            return
        received = "no API key" if _offered_key(request.headers) is None else "an unknown API key"
        raise UnauthorizedError(
            f"The request brought {received}. Send one as 'Authorization: Bearer KEY' or as "
            f"'{KEY_HEADER}: KEY'."
        )


def _network_of(request: Request) -> str:
    """The address; of an IPv6 one the network, because a customer gets 2^64 addresses at once."""
    host = request.client.host if request.client else "unknown"
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 4 or address.ipv4_mapped:
        return host
    return str(ipaddress.ip_network((address, 64), strict=False))
