"""The options and the scheduling headers of a detection request."""

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.requests import Request

from service.batching.types import PRIORITY_STEP_S, Priority
from service.errors import InvalidOptionError
from service.options import DetectParameters, validate_options

MAX_DEADLINE_MS = 3_600_000


class SchedulingHeaders(BaseModel):
    """Deadline and priority of a request."""

    deadline_ms: int | None = Field(
        None,
        alias="X-Deadline-Ms",
        ge=1,
        le=MAX_DEADLINE_MS,
        description="Milliseconds after which the response is no longer needed. A request "
        "that cannot be completed in time is rejected at once (429) and costs no engine time.",
    )
    priority: Priority = Field(
        "normal",
        alias="X-Priority",
        description=f"Order in the queue: each step is worth {PRIORITY_STEP_S:g} s of waiting.",
    )


MAX_PARAMETERS = 2_000
"""Parameters in a query string. A head has room for 30,000, which take 20 ms to parse."""

FORMAT_PARAMETER = "format"
"""The format of the response, which :mod:`service.http.response_formats` reads."""
_LISTS = frozenset({"classes", "scales", "projection"})


_NO_OPTIONS: Mapping[str, list[Any]] = {}


def read_parameters(
    request: Request,
    body_options: Mapping[str, list[Any]] = _NO_OPTIONS,
    others: Collection[str] = (),
) -> DetectParameters:
    """Read the options in the query string and those of the body, given by name.

    ``others``: parameters that are not options, beside the format of the response.

    Not a FastAPI dependency: that takes half a millisecond of the event loop per request, and
    silently uses the last value of a repeated option. Raises :class:`InvalidOptionError`.
    """
    query_string: bytes = request.scope["query_string"]
    if not query_string and not body_options:
        return _DEFAULT_PARAMETERS
    count = query_string.count(b"&") + 1
    if count > MAX_PARAMETERS:
        raise InvalidOptionError(
            f"The query string has {count} parameters; at most {MAX_PARAMETERS} are accepted. "
            "Leave out those that are not options."
        )
    received: dict[str, list[Any]] = {}  # QueryParams.getlist() searches all parameters each time
    for name, value in request.query_params.multi_items():
        received.setdefault(name, []).append(value)
    for name, given in body_options.items():
        received.setdefault(name, []).extend(given)
    for name in (FORMAT_PARAMETER, *others):
        received.pop(name, None)
    options: dict[str, Any] = {}
    for name, values in received.items():
        if name in DetectParameters.model_fields and name not in _LISTS and len(values) > 1:
            raise InvalidOptionError(
                f"{name}: received {len(values)} values, {values!r:.200}. Give it once."
            )
        options[name] = values if name in _LISTS else values[-1]
    return validate_options(DetectParameters, options)


def read_scheduling_headers(headers: Headers) -> SchedulingHeaders:
    """Read the scheduling headers. Raises :class:`InvalidOptionError`."""
    fields = {
        field.alias: headers[field.alias]
        for field in SchedulingHeaders.model_fields.values()
        if field.alias and field.alias in headers
    }
    return validate_options(SchedulingHeaders, fields) if fields else _DEFAULT_SCHEDULING


_DEFAULT_PARAMETERS = DetectParameters.model_validate({})
_DEFAULT_SCHEDULING = SchedulingHeaders.model_validate({})


def describe_options() -> dict[str, Any]:
    """Return the JSON schemas of the options by name, for the OpenAPI document."""
    schemas = DetectParameters.model_json_schema()["properties"]
    return {
        name: {"description": schema["description"], **_without_null(schema)}
        for name, schema in schemas.items()
    }


def describe_parameters() -> list[dict[str, Any]]:
    """Return the OpenAPI parameters of the query string and the scheduling headers."""
    return [
        {
            "name": name,
            "in": place,
            "required": False,
            "description": schema["description"],
            "schema": _without_null(schema),
        }
        for place, model in (("query", DetectParameters), ("header", SchedulingHeaders))
        for name, schema in model.model_json_schema()["properties"].items()
    ]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a given parameter: None stands for one that is absent."""
    moved = {"title", "description", "anyOf"}
    kept = {key: value for key, value in schema.items() if key not in moved and value is not None}
    for variant in schema.get("anyOf", []):
        if variant != {"type": "null"}:
            kept |= variant
    return kept
