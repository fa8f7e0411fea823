"""The checks of API key and rate limit for HTTP requests; both before the body is read."""

from starlette.requests import Request

from service.http.request_scope import request_record
from service.http.state import service_state


async def require_key(request: Request) -> None:
    """Raise :class:`UnauthorizedError` without a key where one is needed; a FastAPI dependency."""
    service_state(request).access.require_key(request.headers, request_record(request))


async def require_key_and_rate(request: Request) -> None:
    """Check the rate limit, then the API key; a FastAPI dependency.

    Raises :class:`RateLimitedError` and :class:`UnauthorizedError`.
    """
    check_key_and_rate(request)


def check_key_and_rate(request: Request) -> None:
    """Check the rate limit, then the API key, as :func:`require_key_and_rate`."""
    service_state(request).access.require_key_and_rate(request.headers, request_record(request))
