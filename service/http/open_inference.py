"""The Open Inference Protocol v2 over HTTP, with Triton's extensions that clients call.

Models, inputs and outputs are described in :mod:`service.open_inference.models`.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from pydantic_core import from_json
from starlette.routing import BaseRoute

from service import errors
from service.cancellation import CancelScope
from service.detection_requests import RequestHead
from service.health import check_live, check_ready
from service.http.detection_requests import read_head
from service.http.image_route import ImageRoute
from service.http.inference_body import InferenceReader
from service.http.inference_response import to_http
from service.http.inference_schemas import (
    INFER,
    IndexEntry,
    Live,
    ModelMetadata,
    ModelReady,
    ModelStatistics,
    Ready,
    ServerMetadata,
)
from service.http.problem_details import problem_responses
from service.http.request_body import BoundedBody, body_timeout
from service.http.request_scope import disconnect_signal, request_record
from service.http.state import service_state
from service.model_loader import RETRY_AFTER_S
from service.open_inference import repository
from service.open_inference.inference import infer
from service.open_inference.models import ModelForm

_TAG = "open inference protocol"
_Name = Annotated[str, Path(description="A model of GET /models, or its tensor form NAME.tensor.")]
_Version = Annotated[str, Path(description="A version of the model.")]
_VERSION = "/models/{name}/versions/{version}"
_UNDOCUMENTED: dict[str, Any] = {"include_in_schema": False}
"""Arguments for routes with a version, which otherwise are as those without one, and for parts of
the protocol that are not supported."""

router = APIRouter(prefix="/v2", tags=[_TAG])
"""Endpoints that describe the models; API key and rate limit apply."""
health = APIRouter(prefix="/v2/health", tags=[_TAG])
"""Endpoints for orchestrators; open, as the other probes."""

_MODEL_ERRORS = problem_responses(*errors.MODEL_ERRORS)
_MAX_REPOSITORY_BODY_BYTES = 4096
_STATE_ERRORS = problem_responses(errors.InvalidOptionError, errors.NotReadyError)
_CHANGE_ERRORS = problem_responses(
    errors.BadJsonError,
    errors.UnknownModelError,
    errors.SlowBodyError,
    errors.BodyTooLargeError,
    errors.InvalidOptionError,
    errors.QueueFullError,
    errors.UnsupportedOperationError,
    errors.NotReadyError,
    errors.ModelUnavailableError,
    errors.RestartRequiredError,
)


async def infer_model(request: Request, name: _Name) -> Response:
    """Run inference with a model."""
    return await _infer(request, name, None)


async def infer_model_version(request: Request, name: _Name, version: _Version) -> Response:
    """Run inference with one version of a model."""
    return await _infer(request, name, version)


async def _infer(request: Request, name: str, version: str | None) -> Response:
    state = service_state(request)
    reader = InferenceReader(request, state.settings)

    def read_options() -> RequestHead:
        if request.scope["query_string"]:
            raise errors.InvalidOptionError(
                "The query string is not read for this endpoint. Send options as parameters in the "
                "JSON of the request."
            )
        return read_head(request)

    with CancelScope(disconnect_signal(request)):
        response = await infer(
            state, request_record(request), name, version, read_options, reader.read
        )
    return await to_http(response, reader.id, reader.is_binary, request.headers)


def inference_routes(**options: Any) -> list[BaseRoute]:
    """Return the routes of the inference endpoints; API key and rate limit apply.

    ``options`` are arguments of :class:`fastapi.APIRouter`; see
    :func:`service.http.routes.detection_routes`.
    """
    routes = APIRouter(route_class=ImageRoute, tags=[_TAG], **options)
    for path, endpoint in (
        ("/v2/models/{name}/infer", infer_model),
        ("/v2/models/{name}/versions/{version}/infer", infer_model_version),
    ):
        routes.post(path, operation_id=endpoint.__name__, **INFER)(endpoint)
    return routes.routes


def _form(request: Request, name: str) -> ModelForm[Any]:
    """Return the model of a path, which may contain a version."""
    return repository.find_form(service_state(request), name, request.path_params.get("version"))


@health.get(
    "/live", operation_id="v2_live", responses=problem_responses(errors.RestartRequiredError)
)
async def live(request: Request) -> Live:
    """Report whether the process can serve, as /livez."""
    check_live(service_state(request))
    return Live(live=True)


@health.get(
    "/ready",
    operation_id="v2_ready",
    responses=problem_responses(errors.StoppingError, errors.NotReadyError),
)
async def ready(request: Request) -> Ready:
    """Report whether requests are served, as /readyz."""
    await check_ready(service_state(request))
    return Ready(ready=True)


@router.get("", operation_id="v2_server_metadata")
async def server_metadata() -> ServerMetadata:
    """Describe the service."""
    return ServerMetadata(**repository.server_metadata())


@router.get("/models/stats", operation_id="v2_statistics", responses=_STATE_ERRORS)
async def all_statistics(request: Request) -> ModelStatistics:
    """Return the statistics of all models."""
    return ModelStatistics(model_stats=repository.all_statistics(service_state(request)))


@router.get(_VERSION, **_UNDOCUMENTED)
@router.get("/models/{name}", operation_id="v2_model", responses=_MODEL_ERRORS)
async def model_metadata(request: Request, name: _Name) -> ModelMetadata:
    """Describe the inputs and outputs of a model."""
    return ModelMetadata(**repository.model_metadata(_form(request, name)))


@router.get(f"{_VERSION}/ready", **_UNDOCUMENTED)
@router.get("/models/{name}/ready", operation_id="v2_model_ready", responses=_MODEL_ERRORS)
async def model_ready(request: Request, name: _Name) -> ModelReady:
    """Report whether a model is ready."""
    detector = _form(request, name).detector
    if detector.problem is not None:
        raise errors.NotReadyError(
            f"Model {detector.manifest.name}: {detector.problem}.", retry_after_s=RETRY_AFTER_S
        )
    return ModelReady(name=name, ready=True)


@router.get(f"{_VERSION}/config", **_UNDOCUMENTED)
@router.get("/models/{name}/config", operation_id="v2_model_config", responses=_MODEL_ERRORS)
async def model_config(request: Request, name: _Name) -> dict[str, Any]:
    """Return the configuration of a model, with fields of Triton's ModelConfig."""
    return repository.model_config(_form(request, name))


@router.get(f"{_VERSION}/stats", **_UNDOCUMENTED)
@router.get("/models/{name}/stats", operation_id="v2_model_statistics", responses=_MODEL_ERRORS)
async def model_statistics(request: Request, name: _Name) -> ModelStatistics:
    """Return the statistics of a model; both forms of a model share them."""
    return ModelStatistics(model_stats=[repository.model_statistics(_form(request, name))])


@router.post("/repository/index", operation_id="v2_repository_index", responses=_STATE_ERRORS)
async def repository_index(request: Request) -> list[IndexEntry]:
    """List the models; with the JSON body {"ready": true}, those that are ready."""
    document = await _read_object(request)
    only_ready = document.get("ready", False)
    if not isinstance(only_ready, bool):
        raise errors.BadJsonError(
            'ready: the value is neither true nor false. Send {"ready": true}.'
        )
    entries = repository.repository_index(service_state(request), only_ready=only_ready)
    return [IndexEntry(**entry) for entry in entries]


@router.post(
    "/repository/models/{name}/load", operation_id="v2_load_model", responses=_CHANGE_ERRORS
)
async def load_model(request: Request, name: _Name) -> dict[str, Any]:
    """Load the packages of a model as they are now; responds when requests use its newest version.

    Needs the setting `model_control`: `explicit`.
    """
    parameters = await _read_parameters(request)
    await repository.load_model(service_state(request), name, parameters)
    return {}


@router.post(
    "/repository/models/{name}/unload", operation_id="v2_unload_model", responses=_CHANGE_ERRORS
)
async def unload_model(request: Request, name: _Name) -> dict[str, Any]:
    """Unload a model; the requests that it has accepted are completed.

    Needs the setting `model_control`: `explicit`.
    """
    parameters = await _read_parameters(request)
    await repository.unload_model(service_state(request), name, parameters)
    return {}


async def _read_parameters(request: Request) -> dict[str, Any]:
    parameters = (await _read_object(request)).get("parameters", {})
    if not isinstance(parameters, dict):
        raise errors.BadJsonError("parameters: the value is not an object. Send one, or nothing.")
    return parameters


async def _read_object(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body; an empty body is an empty object."""
    state = service_state(request)
    with state.bodies.hold() as claim:
        body = BoundedBody(request, _MAX_REPOSITORY_BODY_BYTES, claim)
        try:
            with CancelScope(body_timeout(state.settings.body_timeout_s)):
                document = from_json(await body.read())
        except errors.EmptyBodyError:
            return {}
        except ValueError:
            document = None
    if not isinstance(document, dict):
        raise errors.BadJsonError("The body is not a JSON object. Send one, or nothing.")
    return document


@router.get("/systemsharedmemory/status", **_UNDOCUMENTED)
@router.get("/systemsharedmemory/region/{region}/status", **_UNDOCUMENTED)
@router.get("/cudasharedmemory/status", **_UNDOCUMENTED)
@router.get("/cudasharedmemory/region/{region}/status", **_UNDOCUMENTED)
async def shared_memory_status() -> list[Any]:
    """Return the shared memory regions, of which there are none."""
    return []


@router.post("/systemsharedmemory/{action:path}", **_UNDOCUMENTED)
@router.post("/cudasharedmemory/{action:path}", **_UNDOCUMENTED)
@router.api_route("/trace/setting", methods=["GET", "POST"], **_UNDOCUMENTED)
@router.api_route("/models/{name}/trace/setting", methods=["GET", "POST"], **_UNDOCUMENTED)
@router.api_route("/logging", methods=["GET", "POST"], **_UNDOCUMENTED)
async def unsupported(request: Request) -> Response:
    """Refuse a part of the protocol that the service does not have."""
    raise errors.UnsupportedOperationError(
        f"{request.method} {request.scope['path'][:200]} is not supported: this service has no "
        "shared memory, trace or log settings."
    )
