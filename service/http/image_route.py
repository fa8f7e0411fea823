"""The route class of the endpoints that receive images."""

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.http.access import check_key_and_rate


class ImageRoute(APIRoute):
    """A route whose endpoint takes the request and its path parameters, and returns a response.

    FastAPI documents it as any other route, but does not solve dependencies, validate parameters
    or serialize the result: for a rejected request, that costs several times as much as
    everything else (docs/adr/0013-image-route.md). A protocol that takes keys elsewhere, or whose
    errors have a form of their own, overrides :meth:`respond`.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response of :meth:`respond`; the application handles exceptions."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        response = await self.respond(Request(scope, receive))
        await response(scope, receive, send)

    async def respond(self, request: Request) -> Response:
        """Check the rate limit and the API key, and call the endpoint."""
        check_key_and_rate(request)
        response: Response = await self.endpoint(request, **request.path_params)
        return response
