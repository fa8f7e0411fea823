"""The route class of the detection endpoints."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from service.http.state import service_state


class ImageRoute(APIRoute):
    """A route whose endpoint takes the request and its path parameters, and returns a response.

    FastAPI documents it as any other route, but does not solve dependencies, validate parameters
    or serialize the result: for a rejected request, that costs several times as much as
    everything else (docs/adr/0013-image-route.md). The rate limit and the API key are checked here.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return a handler that calls the endpoint directly."""
        endpoint = self.endpoint

        async def handle(request: Request) -> Response:
            service_state(request).access.check_rate_limit(request)
            response: Response = await endpoint(request, **request.path_params)
            return response

        return handle
