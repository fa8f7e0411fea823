"""Detection requests over HTTP: options in the query string, the body, and scheduling headers."""

import math
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager

from starlette.requests import Request

from model_package import ModelManifest
from service.async_detector import AsyncDetector
from service.cancellation import CancelScope
from service.detection_requests import (
    AcceptedRequest,
    Claim,
    RequestBody,
    RequestHead,
    accept_request,
)
from service.detector import Prediction
from service.http.query_parameters import read_parameters, read_scheduling_headers
from service.http.request_body import BodyFields, read_body
from service.http.request_scope import disconnect_signal, request_record
from service.http.state import service_state

_NO_OPTIONS: BodyFields = {}


def read_head(
    request: Request, body_options: BodyFields = _NO_OPTIONS, others: Collection[str] = ()
) -> RequestHead:
    """Return the options of the query string and the body, and what the headers schedule.

    ``others``: parameters that are not options. Raises :class:`InvalidOptionError`.
    """
    parameters = read_parameters(request, body_options, others)
    headers = read_scheduling_headers(request.headers)
    allowed_ms = math.inf if headers.deadline_ms is None else headers.deadline_ms
    return RequestHead(parameters, allowed_ms / 1000, headers.priority)


def accept_images(
    request: Request,
    model: str | None,
    max_images: int,
    to_options: Callable[[BodyFields], BodyFields] = dict,
    version: str | None = None,
) -> AbstractAsyncContextManager[AcceptedRequest[bytes]]:
    """Read a request with encoded images and admit it until the block ends.

    ``to_options`` converts the fields of the body to options, which is where a protocol whose
    fields have other names differs. See :func:`service.detection_requests.accept_request`.
    """
    state = service_state(request)

    async def read_images(
        detector: AsyncDetector, head: RequestHead, claim: Claim
    ) -> RequestBody[bytes]:
        del detector
        settings = state.settings
        body = await read_body(
            request, settings.max_body_bytes, settings.body_timeout_s, claim, max_images
        )
        size_bytes = sum(len(image) for image in body.images)
        options = to_options(body.options)
        return RequestBody(
            body.images, size_bytes, read_head(request, options) if options else head
        )

    return accept_request(
        state, request_record(request), model, version, lambda: read_head(request), read_images
    )


async def _do_nothing(accepted: AcceptedRequest[bytes], prediction: Prediction) -> None:
    """Take no further step."""


async def detect_in_image(
    request: Request,
    model: str | None,
    to_options: Callable[[BodyFields], BodyFields] = dict,
    then: Callable[[AcceptedRequest[bytes], Prediction], Awaitable[None]] = _do_nothing,
    version: str | None = None,
) -> tuple[ModelManifest, Prediction]:
    """Detect objects in the image of a request; the arguments are those of :func:`accept_images`.

    ``then`` is called with the prediction while the image is still in memory. Returns the manifest
    of the model and its prediction, which is added to the request's record.
    """
    async with accept_images(request, model, 1, to_options, version) as accepted:
        with CancelScope(disconnect_signal(request)):
            prediction = await accepted.detector.detect(
                accepted.items[0], accepted.options, accepted.scheduling
            )
            await then(accepted, prediction)
    manifest = accepted.detector.manifest
    request_record(request).record_prediction(
        manifest.name, prediction.batch_size, prediction.stage_s
    )
    return manifest, prediction
