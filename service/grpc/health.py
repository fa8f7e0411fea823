"""The health checking protocol of gRPC, for probes of Kubernetes and load balancers."""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus

from service.cancellation import CancelScope
from service.errors import QueueFullError, RouterError, ServiceError, StoppingError
from service.grpc.health_pb2 import HealthCheckRequest, HealthCheckResponse
from service.grpc.rpc import Method, Rpc
from service.grpc.wire import parse_message
from service.health import check_live, check_ready
from service.state import ServiceState

LIVENESS = "liveness"
"""Name of the service whose status is that of ``/livez``; the others have that of ``/readyz``."""
READINESS = ("", "inference.GRPCInferenceService")

MAX_WATCHES = 64
"""Calls of ``Watch`` at a time, which last until the client ends them."""
WATCH_INTERVAL_S = 1.0
"""Seconds between two checks of a service that is watched."""


class HealthService:
    """The methods ``Check`` and ``Watch``, which need no key and have no rate limit."""

    def __init__(self, state: ServiceState) -> None:
        self._state = state
        self._watches = 0

    @property
    def methods(self) -> Mapping[str, Method]:
        """The methods by path."""
        return {
            "/grpc.health.v1.Health/Check": Method(self._check, is_probe=True),
            "/grpc.health.v1.Health/Watch": Method(self._watch, is_probe=True, is_streaming=True),
        }

    async def _check(self, rpc: Rpc) -> bytes:
        request = parse_message(await rpc.read_message(), HealthCheckRequest)
        status = await self._status(request.service)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            known = ", ".join(repr(name) for name in (*READINESS, LIVENESS))
            raise RouterError(
                f"There is no service {request.service[:100]!r}; the services are {known}.",
                HTTPStatus.NOT_FOUND,
            )
        return _to_bytes(status)

    async def _watch(self, rpc: Rpc) -> bytes:
        request = parse_message(await rpc.read_message(), HealthCheckRequest)
        if self._watches >= MAX_WATCHES:
            raise QueueFullError(
                f"The service has {MAX_WATCHES} calls of Watch, the most it accepts. Use Check."
            )
        self._watches += 1
        try:
            with CancelScope(self._state.stopping):
                await self._write_changes(rpc, request.service)
        except StoppingError:
            raise StoppingError("The service is shutting down. Send requests elsewhere.") from None
        finally:
            self._watches -= 1
        return b""

    async def _write_changes(self, rpc: Rpc, service: str) -> None:
        written = None
        while True:
            status = await self._status(service)
            if status != written:
                await rpc.context.write(_to_bytes(status))
                written = status
            await asyncio.sleep(WATCH_INTERVAL_S)

    async def _status(self, service: str) -> HealthCheckResponse.ServingStatus:
        try:
            if service == LIVENESS:
                check_live(self._state)
            elif service in READINESS:
                await check_ready(self._state)
            else:
                return HealthCheckResponse.SERVICE_UNKNOWN
        except ServiceError:
            return HealthCheckResponse.NOT_SERVING
        return HealthCheckResponse.SERVING


def _to_bytes(status: HealthCheckResponse.ServingStatus) -> bytes:
    return HealthCheckResponse(status=status).SerializeToString()
