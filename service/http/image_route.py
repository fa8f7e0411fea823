"""The routes that images come in by, without the framework's detours."""

from collections.abc import Awaitable, Callable, Collection

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.problem_details import HANDLED, problem_response


class DirectRoutes:
    """Plain ASGI: calls the endpoints of ``routes`` itself; all other requests are for ``app``.

    FastAPI describes those routes, too; but finding one and solving its dependencies takes it
    several times as long as refusing the request, and under overload that is the engine's time.
    An endpoint takes the request and what its path holds, and gives a ``Response``. ``check``
    comes first, and raises what there is against the request.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: Collection[APIRoute],
        check: Callable[[Request], Awaitable[None]],
    ) -> None:
        self._app = app
        self._routes = [
            (route.path_regex.fullmatch, route.methods or set(), route) for route in routes
        ]
        self._check = check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] == "http":
            for match, methods, route in self._routes:
                found = match(scope["path"])
                if found and scope["method"] in methods:
                    scope["route"] = route
                    request = Request(scope, receive)
                    response = await self._response(route, request, found.groupdict())
                    await response(scope, receive, send)
                    return
        await self._app(scope, receive, send)

    async def _response(
        self, route: APIRoute, request: Request, of_path: dict[str, str]
    ) -> Response:
        try:
            await self._check(request)
            response: Response = await route.endpoint(request, **of_path)
        except HANDLED as error:
            return await problem_response(request, error)
        return response
