"""Typed access to the objects that the server and the middleware add to the ASGI scope."""

from typing import Any

from starlette.requests import Request
from starlette.types import Scope

from service.cancellation import CancelSignal
from service.observability.request_record import RequestRecord

_RECORD = "centernet.record"
_DISCONNECTED = "centernet.disconnected"


def set_request_record(scope: Scope, record: RequestRecord) -> None:
    """Attach the record of a request."""
    scope[_RECORD] = record


def request_record(request: Request) -> RequestRecord:
    """Return the record of a request."""
    record: RequestRecord = request.scope[_RECORD]
    return record


def set_disconnect_signal(scope: Any, signal: CancelSignal) -> None:
    """Attach the signal that is set when the client disconnects.

    The server does this because ASGI has only a message for it: receiving it takes a task and
    two turns of the event loop for every request.
    """
    scope[_DISCONNECTED] = signal


def disconnect_signal(request: Request) -> CancelSignal:
    """Return the signal that is set when the client disconnects."""
    signal: CancelSignal = request.scope[_DISCONNECTED]
    return signal
