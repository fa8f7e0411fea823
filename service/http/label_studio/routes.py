"""The endpoints of a Label Studio ML backend, as ``label-studio-ml`` serves them.

Each exists for the default model and, with its name in the path, for every other one. Errors are
problem documents. Label Studio shows their status only, so their texts are logged.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.routing import BaseRoute

from service.async_detector import AsyncDetector
from service.batching.types import Priority
from service.cancellation import CancelScope
from service.detection_requests import Claim, RequestBody, RequestHead, accept_request
from service.errors import BadJsonError, InvalidOptionError, NotReadyError, ServiceError
from service.http.access import check_key_and_rate
from service.http.image_route import ImageRoute
from service.http.label_studio.images import TaskImages
from service.http.label_studio.labeling_config import RegionTargets, match_labels
from service.http.label_studio.regions import to_regions
from service.http.request_body import read_json_object
from service.http.request_scope import disconnect_signal, request_record
from service.http.state import service_state
from service.model_loader import RETRY_AFTER_S
from service.options import DetectParameters, validate_options

PREFIX = "/label-studio"
MAX_VALUES = 100_000
"""Values of the JSON of a request, about 25 for each task; parsing as many takes about 10 ms."""
_QUEUE_SHARE = 4
"""A request occupies at most one place in so many of the queue of a model."""
_log = logging.getLogger(__name__)

_Task = Mapping[str, Any]


class _LabelStudioRoute(ImageRoute):
    """A route that logs the text of errors."""

    async def respond(self, request: Request) -> Response:
        check_key_and_rate(request)
        try:
            response: Response = await self.endpoint(request, **request.path_params)
        except ServiceError as error:
            _log.warning("request %s: %s", request_record(request).request_id, error.detail)
            raise
        return response


def label_studio_routes(images: TaskImages) -> list[BaseRoute]:
    """Return the routes; API key and rate limit apply. ``images``: reads the images of tasks."""

    async def predict(request: Request, name: str | None = None) -> Response:
        return await _predict(request, name, images)

    routes = APIRouter(route_class=_LabelStudioRoute, include_in_schema=False)
    for prefix in (PREFIX, PREFIX + "/{name}"):
        routes.get(f"{prefix}/health")(_report_health)
        routes.post(f"{prefix}/setup")(_set_up)
        routes.post(f"{prefix}/predict")(predict)
        routes.post(f"{prefix}/webhook")(_receive_event)
    return routes.routes


async def _report_health(request: Request, name: str | None = None) -> Response:
    """Report that the model is ready."""
    detector = _detector(request, name)
    if detector.problem is not None:
        raise NotReadyError(f"{detector.problem}.", retry_after_s=RETRY_AFTER_S)
    return _json({"status": "UP", "model_class": detector.manifest.name})


async def _set_up(request: Request, name: str | None = None) -> Response:
    """Check the labeling configuration of a project, and return the version of the model."""
    detector = _detector(request, name)
    with service_state(request).bodies.hold() as claim:
        body = await _read_body(request, claim)
        await asyncio.to_thread(match_labels, body.get("schema"), detector.manifest)
    return _json({"model_version": _version(detector)})


async def _receive_event(request: Request, name: str | None = None) -> Response:
    """Accept events of annotations, which change nothing, and refuse to train."""
    _detector(request, name)
    with service_state(request).bodies.hold() as claim:
        action = (await _read_body(request, claim)).get("action")
    if action == "START_TRAINING":
        raise InvalidOptionError(
            "action: received START_TRAINING. This service does not train: export the annotations "
            "as COCO, train with centernet-train, and serve the new package."
        )
    return _json({"status": "ok"})


async def _predict(request: Request, name: str | None, images: TaskImages) -> Response:
    """Detect objects in the images of tasks.

    A task without a prediction has an empty list, which Label Studio does not store. The first
    error is raised if all tasks fail.
    """
    detector = _detector(request, name)
    with service_state(request).bodies.hold() as claim:
        body = await _read_body(request, claim)
        tasks = _read_tasks(body)
        # In a thread: thousands of labels take tens of milliseconds.
        config = body.get("label_config")
        targets = await asyncio.to_thread(match_labels, config, detector.manifest)
        prediction = _TaskPrediction(request, detector, targets, images)
        results: list[dict[str, Any] | list[Any]] = [[] for _ in tasks]
        errors: dict[int, ServiceError] = {}
        waiting = iter(enumerate(tasks))
        # An annotator waits for a single task.
        priority: Priority = "normal" if len(tasks) == 1 else "low"

        async def predict_in_turn() -> None:
            for index, task in waiting:
                try:
                    results[index] = await prediction.predict(task, priority)
                except ServiceError as error:
                    errors[index] = error

        with CancelScope(disconnect_signal(request)):
            async with asyncio.TaskGroup() as group:
                for _ in range(min(len(tasks), _tasks_at_once(request, detector))):
                    group.create_task(predict_in_turn())
    if errors:
        _report(request, errors, len(tasks))
    return _json({"results": results})


class _TaskPrediction:
    """Predictions for the tasks of one request."""

    def __init__(
        self, request: Request, detector: AsyncDetector, targets: RegionTargets, images: TaskImages
    ) -> None:
        self._state, self._record = service_state(request), request_record(request)
        self._detector = detector
        self._images = images
        self._targets = targets
        classes = [detector.manifest.classes[number] for number in sorted(targets.class_ids)]
        self._parameters = validate_options(
            DetectParameters, {"score_threshold": targets.min_score, "classes": classes}
        )

    async def predict(self, task: _Task, priority: Priority) -> dict[str, Any]:
        """Return the prediction for one task, whose image is a detection request of its own."""

        async def read_image(
            detector: AsyncDetector, head: RequestHead, claim: Claim
        ) -> RequestBody[bytes]:
            del detector
            address = task["data"].get(self._targets.data_field)
            image = await self._images.read(address, task.get("id"), claim)
            return RequestBody([image], len(image), head)

        async with accept_request(
            self._state,
            replace(self._record, stages=[]),  # the log does not list the stages of every image
            self._detector.manifest.name,
            self._detector.manifest.version,
            lambda: RequestHead(self._parameters, priority=priority),
            read_image,
        ) as accepted:
            found = await accepted.detector.detect(
                accepted.items[0], accepted.options, accepted.scheduling
            )
        regions = to_regions(found, self._targets)
        scores = [region["score"] for region in regions]
        return {
            "model_version": _version(self._detector),
            "score": sum(scores) / len(scores) if scores else None,
            "result": regions,
        }


def _detector(request: Request, name: str | None) -> AsyncDetector:
    detector = service_state(request).loader.models.get(name)
    request_record(request).model = detector.manifest.name
    return detector


async def _read_body(request: Request, claim: Claim) -> dict[str, Any]:
    state = service_state(request)
    with CancelScope(state.stopping):
        return await read_json_object(
            request, state.settings.max_body_bytes, state.settings.body_timeout_s, claim, MAX_VALUES
        )


def _read_tasks(body: Mapping[str, Any]) -> list[_Task]:
    tasks = body.get("tasks")
    if not isinstance(tasks, list) or not tasks:
        raise BadJsonError(
            f"tasks: received a value of type {type(tasks).__name__}. Send a list of one or more "
            'tasks, such as {"id": 1, "data": {"image": "/data/upload/1/a.jpg"}}.'
        )
    for index, task in enumerate(tasks):
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
            raise BadJsonError(
                f"tasks: number {index} is not a task. A task is an object with an object `data`."
            )
    return tasks


def _tasks_at_once(request: Request, detector: AsyncDetector) -> int:
    share = max(1, detector.admission.limit // _QUEUE_SHARE)
    return min(service_state(request).settings.max_images_per_request, share)


def _report(request: Request, errors: Mapping[int, ServiceError], tasks: int) -> None:
    """Log and count the errors of tasks; raises the first if all tasks have failed."""
    first = errors[min(errors)]
    if len(errors) == tasks:
        raise first
    _log.warning(
        "request %s: %d of %d tasks have no prediction. The first error: %s",
        *(request_record(request).request_id, len(errors), tasks, first.detail),
    )
    metrics = service_state(request).metrics
    for error in errors.values():
        metrics.errors.labels(error.code).inc()


def _version(detector: AsyncDetector) -> str:
    """Return the version under which Label Studio stores the predictions of a model."""
    return f"{detector.manifest.name} {detector.manifest.version}"


def _json(body: dict[str, Any]) -> Response:
    return Response(json.dumps(body), 200, None, "application/json")
