"""The route class of the detection endpoints."""

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.http.access import check_key_and_rate


class ImageRoute(APIRoute):
    """A route whose endpoint takes the request and its path parameters, and returns a response.

    FastAPI documents it as any other route, but does not solve dependencies, validate parameters
    or serialize the result: for a rejected request, that costs several times as much as
    everything else (docs/adr/0013-image-route.md). The rate limit and the API key are checked here.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the endpoint and send its response; the application handles exceptions."""
        if scope["method"] != "POST":
            await super().handle(scope, receive, send)
            return
        request = Request(scope, receive)
        check_key_and_rate(request)
        response: Response = await self.endpoint(request, **request.path_params)
        await response(scope, receive, send)
