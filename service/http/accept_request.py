"""The way into the service: who is refused, in which order, and what the others bring along."""

import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import Request

from service.batching.batcher import SchedulingOptions
from service.cancellation import CancelScope
from service.detector import Detector
from service.http.query_parameters import (
    PRIORITY_OFFSETS_S,
    read_parameters,
    read_scheduling_headers,
)
from service.http.request_body import read_images
from service.model_loader import ModelLoader
from service.model_registry import ModelRegistry
from service.options import RequestOptions


@dataclass(frozen=True)
class AcceptedRequest:
    """A request that has its places in the queue, and all it needs to be answered."""

    predictor: Detector
    options: RequestOptions
    scheduling: SchedulingOptions
    images: list[bytes]


@asynccontextmanager
async def accept_request(
    request: Request, name: str | None, most: int
) -> AsyncIterator[AcceptedRequest]:
    """Let a request for the model ``name`` with up to ``most`` images in, until the block ends.

    Raises every error of :mod:`service.errors` that a request can fail with before its images are
    looked at.
    """
    asked_at = time.perf_counter()
    settings, record = request.app.state.settings, request.scope["record"]
    predictor = models_of(request).get(name)
    record.model = predictor.manifest.name
    # Under overload most requests are refused: before anything that costs more than that.
    predictor.admission.check(1, math.inf)
    parameters, urgent = read_parameters(request), read_scheduling_headers(request.headers)
    options = predictor.options(parameters)
    allowed_ms = math.inf if urgent.deadline_ms is None else urgent.deadline_ms
    deadline_at = asked_at + allowed_ms / 1000
    # Still at the door, so that nobody sends an image for nothing.
    predictor.admission.check(options.inputs.count, deadline_at)
    with request.app.state.bodies.hold() as claim:
        reading = read_images(
            request, settings.max_body_bytes, settings.body_timeout_s, claim, most
        )
        with CancelScope(request.app.state.stopping):
            images = await reading
        record.record_body(sum(len(image) for image in images))
        deadline_at = min(deadline_at, time.perf_counter() + settings.request_timeout_s)
        scheduling = SchedulingOptions(deadline_at, PRIORITY_OFFSETS_S[urgent.priority])
        # A place in the queue is for requests that are all here, not for slow uploads.
        with predictor.admission.hold(options.inputs.count * len(images), deadline_at):
            yield AcceptedRequest(predictor, options, scheduling, images)


def models_of(request: Request) -> ModelRegistry:
    """The loaded models. Raises :class:`service.errors.NotReadyError` before there are any."""
    startup: ModelLoader = request.app.state.startup
    return startup.models
