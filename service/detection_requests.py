"""Acceptance of detection requests, whatever their protocol: options, deadline, memory and queue.

A protocol reads the head and the body of its requests; :func:`accept_request` applies the order
and the limits that hold for all of them.
"""

import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
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


@dataclass(slots=True)
class RequestHead:
    """What is known of a request before its body is read.

    ``allowed_s``: seconds, from the arrival of the head, after which the response is no longer
    needed.
    """

    parameters: DetectParameters
    allowed_s: float = math.inf
    priority: Priority = "normal"


@dataclass(slots=True)
class RequestBody(Generic[Item]):
    """The body of a request.

    ``size_bytes``: the encoded size of the items. ``head``: the head, with the options of the body
    if it has any.
    """

    items: list[Item]
    size_bytes: int
    head: RequestHead


@dataclass(frozen=True)
class AcceptedRequest(Generic[Item]):
    """A detection request that a model has admitted.

    ``places``: its places in the queue, which are released at the end of the request; a caller that
    no longer needs them closes it before.
    """

    detector: AsyncDetector
    options: RequestOptions
    scheduling: SchedulingOptions
    items: list[Item]
    places: ExitStack


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
    *,
    inputs_per_item: int | None = None,
) -> AsyncIterator[AcceptedRequest[Item]]:
    """Read a request for one model and admit it until the block ends.

    ``model``: its name, None for the default model; ``version``: None for its newest version. See
    :func:`accept_request_for_models`.
    """
    async with accept_request_for_models(
        state, record, [(model, version)], read_head, read_body, inputs_per_item=inputs_per_item
    ) as [accepted]:
        yield accepted


@asynccontextmanager
async def accept_request_for_models(
    state: ServiceState,
    record: RequestRecord,
    models: Sequence[tuple[str | None, str | None]],
    read_head: Callable[[], RequestHead],
    read_body: ReadBody[Item],
    *,
    inputs_per_item: int | None = None,
) -> AsyncIterator[list[AcceptedRequest[Item]]]:
    """Read a request for one or several models and admit it, by all or none, until the block ends.

    ``models``: names and versions. They run until the block ends, even if they are unloaded
    meanwhile. ``read_head`` and ``read_body`` raise the errors of :mod:`service.errors` for what
    the protocol does not accept; the latter receives the first model. ``inputs_per_item``: network
    inputs of each item; None for images, whose number of inputs depends on the options.

    Order: models, options of the head, admission check without the body, body with its options,
    admission. A request occupies places in the queue only once its whole body has arrived, so that
    slow uploads occupy none.

    Raises the errors of :mod:`service.errors` for head, body, options and queue.
    """
    received_at = time.perf_counter()
    with ExitStack() as held:
        detectors = [held.enter_context(state.loader.models.lease(*model)) for model in models]
        record.model = ",".join(detector.manifest.name for detector in detectors)
        has_succeeded = False
        try:
            claim = held.enter_context(state.bodies.hold())
            head = read_head()
            options = [detector.rules.complete(head.parameters) for detector in detectors]
            # Under overload most requests are rejected here, before their bodies cost anything.
            for detector, its_options in zip(detectors, options, strict=True):
                count = inputs_per_item or its_options.inputs.count
                detector.admission.check(count, received_at + head.allowed_s)
            with CancelScope(state.stopping):
                body = await read_body(detectors[0], head, claim)
            record.record_body(body.size_bytes)
            if body.head is not head:
                head = body.head
                options = [detector.rules.complete(head.parameters) for detector in detectors]
            deadline_at = min(
                received_at + head.allowed_s,
                time.perf_counter() + state.settings.request_timeout_s,
            )
            accepted = []
            for detector, its_options in zip(detectors, options, strict=True):
                count = (inputs_per_item or its_options.inputs.count) * len(body.items)
                offset_s = PRIORITY_OFFSETS_S[head.priority] - detector.size_delay_s(count)
                scheduling = SchedulingOptions(deadline_at, offset_s)
                places = held.enter_context(ExitStack())
                places.enter_context(detector.admission.admit(count, deadline_at))
                accepted.append(
                    AcceptedRequest(detector, its_options, scheduling, body.items, places)
                )
            yield accepted
            has_succeeded = True
        finally:
            seconds = time.perf_counter() - received_at
            for detector in detectors:
                statistics = detector.statistics
                (statistics.success if has_succeeded else statistics.fail).add(seconds)
