"""Detection with several models in one image, which is decoded once."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from service.async_detector import AsyncDetector
from service.batching.types import PRIORITY_OFFSETS_S, SchedulingOptions
from service.cancellation import CancelScope, Timeout
from service.detection_requests import ReadBody, RequestHead
from service.detector import Prediction, PreprocessedImage
from service.errors import DeadlineExceededError, ServiceError
from service.image_pool import ImagePool
from service.imaging.image_decoding import open_image
from service.imaging.types import DecodingCost
from service.observability.request_record import RequestRecord
from service.options import RequestOptions
from service.state import ServiceState


@dataclass(frozen=True)
class ModelPart:
    """The part of a request that one model does; ``places``: its places in the model's queue."""

    detector: AsyncDetector
    options: RequestOptions
    scheduling: SchedulingOptions
    places: ExitStack


@dataclass(frozen=True)
class AcceptedImage:
    """An image that several models have admitted."""

    image: bytes
    parts: Sequence[ModelPart]
    pool: ImagePool
    max_pixels: int


@asynccontextmanager
async def accept_for_models(
    state: ServiceState,
    record: RequestRecord,
    names: Sequence[str],
    read_head: Callable[[], RequestHead],
    read_body: ReadBody[bytes],
) -> AsyncIterator[AcceptedImage]:
    """Read a request for several models and admit it, by all of them or none, until the block ends.

    The order is that of :func:`service.detection_requests.accept_request`, as are the errors; the
    options must be valid for each model.
    """
    received_at = time.perf_counter()
    models = state.loader.models
    detectors = [models.get(name) for name in names]
    record.model = ",".join(names)
    head = read_head()
    options = [one.rules.complete(head.parameters) for one in detectors]
    for detector, its_options in zip(detectors, options, strict=True):
        detector.admission.check(its_options.inputs.count, received_at + head.allowed_s)
    with ExitStack() as counted, state.bodies.hold() as claim:
        for detector in detectors:
            counted.enter_context(detector.statistics.count_request())
        with CancelScope(state.stopping):
            body = await read_body(detectors[0], head, claim)
        record.record_body(body.size_bytes)
        if body.head is not head:
            head = body.head
            options = [one.rules.complete(head.parameters) for one in detectors]
        deadline_at = min(
            received_at + head.allowed_s, time.perf_counter() + state.settings.request_timeout_s
        )
        with ExitStack() as admitted:
            parts = []
            for detector, its_options in zip(detectors, options, strict=True):
                count = its_options.inputs.count
                offset_s = PRIORITY_OFFSETS_S[head.priority] - detector.size_delay_s(count)
                scheduling = SchedulingOptions(deadline_at, offset_s)
                places = admitted.enter_context(ExitStack())
                places.enter_context(detector.admission.admit(count, deadline_at))
                parts.append(ModelPart(detector, its_options, scheduling, places))
            max_pixels = state.settings.max_image_pixels
            yield AcceptedImage(body.items[0], parts, models.pool, max_pixels)


async def detect_with_models(accepted: AcceptedImage) -> list[Prediction | ServiceError]:
    """Return the detections of each model, or its error; an error in one does not affect others.

    The stages ``decode_queue`` and ``prepare`` of all predictions are the same: those of the image.
    Raises the image errors of :mod:`service.errors`, :class:`DeadlineExceededError` and
    :class:`StoppingError`.
    """
    began_at = time.perf_counter()
    images, prepare_s = await _prepare(accepted)
    decode_queue_s = time.perf_counter() - began_at - prepare_s

    async def detect(part: ModelPart, image: PreprocessedImage) -> Prediction | ServiceError:
        try:
            with part.places:
                prediction = await part.detector.detect(image, part.options, part.scheduling)
        except ServiceError as error:
            return error
        image_s = {"decode_queue": decode_queue_s, "prepare": prepare_s}
        return replace(prediction, stage_s={**prediction.stage_s, **image_s})

    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(detect(part, image))
            for part, image in zip(accepted.parts, images, strict=True)
        ]
    return [task.result() for task in tasks]


async def _prepare(accepted: AcceptedImage) -> tuple[Sequence[PreprocessedImage], float]:
    """Return the inputs of each model, and the seconds that it took to make them.

    A JPEG is decoded once for each reduction that the models need, so that each model gets the
    pixels that it would get alone. Models with inputs of similar sizes need the same one.
    """
    first = accepted.parts[0]
    opened = open_image(accepted.image, accepted.max_pixels)
    plans = [
        part.detector.detector.plan_inputs(opened, part.options.inputs) for part in accepted.parts
    ]
    by_reduction: dict[int, list[int]] = defaultdict(list)
    for index, plan in enumerate(plans):
        by_reduction[plan.reduction].append(index)

    def prepare() -> tuple[list[PreprocessedImage], float]:
        began_at = time.perf_counter()
        images: dict[int, PreprocessedImage] = {}
        for reduction, indices in by_reduction.items():
            decoded = opened.decode(reduction)
            for index in indices:
                detector = accepted.parts[index].detector.detector
                images[index] = detector.make_inputs(opened, decoded, plans[index])
            del decoded  # before the next one is made
        return [images[index] for index in range(len(plans))], time.perf_counter() - began_at

    cost = DecodingCost(opened.cost.memory_bytes, len(by_reduction) * opened.cost.cpu_s)
    left_s = first.scheduling.deadline_at - time.perf_counter()
    with CancelScope(Timeout(left_s, _deadline_exceeded)):
        return await asyncio.wrap_future(accepted.pool.submit(prepare, first.scheduling, cost))


def _deadline_exceeded() -> DeadlineExceededError:
    return DeadlineExceededError(
        "The image was not decoded by the deadline and the request was dropped. Send it again when "
        "the service is less busy, or allow more time."
    )
