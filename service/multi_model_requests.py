"""Detection with several models in one image, which is decoded once."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from service.cancellation import CancelScope, Timeout
from service.detection_requests import AcceptedRequest
from service.detector import Prediction, PreprocessedImage
from service.errors import DeadlineExceededError, ServiceError
from service.imaging.image_decoding import open_image
from service.imaging.types import DecodingCost
from service.state import ServiceState


async def detect_with_models(
    state: ServiceState, parts: Sequence[AcceptedRequest[bytes]]
) -> list[Prediction | ServiceError]:
    """Return the detections of each model, or its error; an error in one does not affect others.

    ``parts``: the same image, accepted by each model. The stages ``decode_queue`` and ``prepare``
    of all predictions are the same: those of the image.

    Raises the image errors of :mod:`service.errors`, :class:`DeadlineExceededError` and
    :class:`StoppingError`.
    """
    began_at = time.perf_counter()
    images, prepare_s = await _prepare(state, parts)
    decode_queue_s = time.perf_counter() - began_at - prepare_s

    async def detect(
        part: AcceptedRequest[bytes], image: PreprocessedImage
    ) -> Prediction | ServiceError:
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
            for part, image in zip(parts, images, strict=True)
        ]
    return [task.result() for task in tasks]


async def _prepare(
    state: ServiceState, parts: Sequence[AcceptedRequest[bytes]]
) -> tuple[Sequence[PreprocessedImage], float]:
    """Return the inputs of each model, and the seconds that it took to make them.

    A JPEG is decoded once for each reduction that the models need, so that each model gets the
    pixels that it would get alone. Models with inputs of similar sizes need the same one.
    """
    first = parts[0]
    opened = open_image(first.items[0], state.settings.max_image_pixels)
    plans = [part.detector.detector.plan_inputs(opened, part.options.inputs) for part in parts]
    by_reduction: dict[int, list[int]] = defaultdict(list)
    for index, plan in enumerate(plans):
        by_reduction[plan.reduction].append(index)

    def prepare() -> tuple[list[PreprocessedImage], float]:
        began_at = time.perf_counter()
        images: dict[int, PreprocessedImage] = {}
        for reduction, indices in by_reduction.items():
            decoded = opened.decode(reduction)
            for index in indices:
                detector = parts[index].detector.detector
                images[index] = detector.make_inputs(opened, decoded, plans[index])
            del decoded  # before the next one is made
        return [images[index] for index in range(len(plans))], time.perf_counter() - began_at

    cost = DecodingCost(opened.cost.memory_bytes, len(by_reduction) * opened.cost.cpu_s)
    left_s = first.scheduling.deadline_at - time.perf_counter()
    with CancelScope(Timeout(left_s, _deadline_exceeded)):
        return await asyncio.wrap_future(
            state.loader.models.pool.submit(prepare, first.scheduling, cost)
        )


def _deadline_exceeded() -> DeadlineExceededError:
    return DeadlineExceededError(
        "The image was not decoded by the deadline and the request was dropped. Send it again when "
        "the service is less busy, or allow more time."
    )
