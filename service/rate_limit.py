"""Rate limiting per client."""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

MAX_CLIENTS = 10_000


class RateLimiter:
    """A token bucket per client (GCRA), stored as the time at which the bucket is full again.

    At most ``MAX_CLIENTS`` buckets are stored; the least recently used one is dropped, which is
    equivalent to refilling it. Implemented here, because libraries keep this state in Redis or
    without a bound.
    """

    def __init__(
        self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval_s = 1 / per_second
        self._burst_s = burst * self._interval_s
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of stored buckets."""
        return len(self._full_at)

    def wait_s(self, client: str) -> float:
        """Take a token and return 0, or return the seconds until one is available."""
        now = self._clock()
        full_at = max(now, self._full_at.pop(client, now)) + self._interval_s
        wait_s = full_at - now - self._burst_s
        # A rejection takes no token; 1e-6 s is the rounding error of the sums.
        self._full_at[client] = full_at if wait_s <= 1e-6 else full_at - self._interval_s
        if len(self._full_at) > MAX_CLIENTS:
            self._full_at.popitem(last=False)
        return wait_s if wait_s > 1e-6 else 0.0


def client_network(host: str) -> str:
    """Return an IPv4 address itself, and of an IPv6 address the /64 network of one customer.

    Other names are returned as they are.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 4 or address.ipv4_mapped:
        return host
    return str(ipaddress.ip_network((address, 64), strict=False))
