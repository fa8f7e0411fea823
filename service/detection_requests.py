"""Acceptance of detection requests, whatever their protocol: options, deadline, memory and queue.

A protocol reads the head and the body of its requests; :func:`accept_request` applies the order
and the limits that hold for all of them.
"""

import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from service.async_detector import AsyncDetector
from service.batching.types import PRIORITY_OFFSETS_S, Priority, SchedulingOptions
from service.cancellation import CancelScope
from service.observability.request_record import RequestRecord
from service.options import DetectParameters, RequestOptions
from service.state import ServiceState

Item = TypeVar("Item")
"""What a request asks to detect in: an encoded image, or a network input."""


@dataclass(frozen=True)
class RequestHead:
    """What is known of a request before its body is read.

    ``allowed_s``: seconds, from the arrival of the head, after which the response is no longer
    needed.
    """

    parameters: DetectParameters
    allowed_s: float = math.inf
    priority: Priority = "normal"


@dataclass(frozen=True)
class RequestBody(Generic[Item]):
    """The body of a request.

    ``size_bytes``: the encoded size of the items. ``head``: the head, with the options of the body
    if it has any. ``inputs_per_item``: network inputs of each item; None for images, whose number
    of inputs depends on the options.
    """

    items: list[Item]
    size_bytes: int
    head: RequestHead
    inputs_per_item: int | None = None


@dataclass(frozen=True)
class AcceptedRequest(Generic[Item]):
    """A detection request that was admitted."""

    detector: AsyncDetector
    options: RequestOptions
    scheduling: SchedulingOptions
    items: list[Item]


Claim = Callable[[int], None]
"""Reserves memory for a number of bytes of a body, until the end of the request; raises
:class:`service.errors.QueueFullError` if the bodies of other requests use all of it."""

ReadBody = Callable[[AsyncDetector, RequestHead, Claim], Awaitable[RequestBody[Item]]]
"""Reader of the body of a request for a model."""


@asynccontextmanager
async def accept_request(
    state: ServiceState,
    record: RequestRecord,
    model: str | None,
    version: str | None,
    read_head: Callable[[], RequestHead],
    read_body: ReadBody[Item],
) -> AsyncIterator[AcceptedRequest[Item]]:
    """Read a detection request and admit it until the block ends.

    ``model``: its name, None for the default model; ``version``: None for its newest version. The
    model runs until the block ends, even if it is unloaded meanwhile. ``read_head`` and
    ``read_body`` raise the errors of :mod:`service.errors` for what the protocol does not accept.

    Order: model, options of the head, admission check without the body, body with its options,
    admission. A request occupies places in the queue only once its whole body has arrived, so that
    slow uploads occupy none.

    Raises the errors of :mod:`service.errors` for head, body, options and queue.
    """
    received_at = time.perf_counter()
    with (
        state.loader.models.lease(model, version) as detector,
        detector.statistics.count_request(),
        state.bodies.hold() as claim,
    ):
        record.model = detector.manifest.name
        head = read_head()
        options = detector.rules.complete(head.parameters)
        # Under overload most requests are rejected here, before their bodies cost anything.
        detector.admission.check(options.inputs.count, received_at + head.allowed_s)
        with CancelScope(state.stopping):
            body = await read_body(detector, head, claim)
        record.record_body(body.size_bytes)
        if body.head is not head:
            options = detector.rules.complete(body.head.parameters)
        deadline_at = min(
            received_at + body.head.allowed_s,
            time.perf_counter() + state.settings.request_timeout_s,
        )
        places = (body.inputs_per_item or options.inputs.count) * len(body.items)
        offset_s = PRIORITY_OFFSETS_S[body.head.priority] - detector.size_delay_s(places)
        scheduling = SchedulingOptions(deadline_at, offset_s)
        with detector.admission.admit(places, deadline_at):
            yield AcceptedRequest(detector, options, scheduling, body.items)
