"""Parameters of an inference request: options, timeout and priority."""

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel, Field

from service.batching.types import Priority
from service.detection_requests import RequestHead
from service.errors import InvalidInferenceRequestError
from service.open_inference.types import Parameters
from service.options import DetectParameters, validate_options

PRIORITIES: Mapping[int, Priority] = {1: "high", 2: "normal", 3: "low"}
"""Priority levels; 0 stands for the default level, which is ``normal``."""
DEFAULT_PRIORITY = 2


class _Scheduling(BaseModel):
    """Deadline and priority, with the names and units of Triton."""

    timeout: int = Field(
        0,
        ge=0,
        le=3_600_000_000,
        description="Microseconds after which the response is no longer needed; 0: no limit.",
    )
    priority: int = Field(0, ge=0, le=len(PRIORITIES), description="1 is the highest; 0: default.")


SCHEDULING_PARAMETERS = frozenset(_Scheduling.model_fields)


def read_head(parameters: Parameters, options: Collection[str], head: RequestHead) -> RequestHead:
    """Return the head with the parameters of the body.

    ``options``: the names of the accepted options, fields of
    :class:`service.options.DetectParameters`. The earlier of two deadlines holds.

    Raises :class:`InvalidInferenceRequestError` for a name that is not accepted, and
    :class:`InvalidOptionError` for a value.
    """
    for name in parameters:
        if name not in options and name not in SCHEDULING_PARAMETERS:
            accepted = ", ".join(sorted([*options, *SCHEDULING_PARAMETERS]))
            raise InvalidInferenceRequestError(
                f"Parameter {name!r:.100} is not accepted; the parameters of this model are "
                f"{accepted}."
            )
    given = {name: parameters[name] for name in parameters if name in SCHEDULING_PARAMETERS}
    scheduling = validate_options(_Scheduling, given)
    allowed_s = head.allowed_s
    if scheduling.timeout:
        allowed_s = min(allowed_s, scheduling.timeout / 1e6)
    priority = PRIORITIES[scheduling.priority] if scheduling.priority else head.priority
    values = {name: _option(name, parameters[name]) for name in parameters if name in options}
    return RequestHead(validate_options(DetectParameters, values), allowed_s, priority)


def _option(name: str, value: Any) -> Any:
    """Return the value of an option; parameters have no lists, so names are separated by commas."""
    return value.split(",") if name == "classes" and isinstance(value, str) else value
