"""W3C trace context, and what the service needs of a tracer; OpenTelemetry is in ``spans``."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from starlette.datastructures import Headers

from service.settings import Settings

if TYPE_CHECKING:
    from service.observability.request_record import RequestRecord

# W3C Trace Context, 3.2: later versions may append fields to those of version 00.
_TRACEPARENT = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?!0{32})(?P<trace>[0-9a-f]{32})"
    r"-(?!0{16})(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)


class TracingUnavailableError(Exception):
    """Traces are wanted and cannot be made."""


@dataclass(frozen=True)
class TraceParent:
    """The place of the caller in a trace: 32 and 16 hex digits; ``state`` is ``tracestate``."""

    trace_id: str
    span_id: str
    sampled: bool
    state: str


def read_traceparent(headers: Headers) -> TraceParent | None:
    """The caller's place in a trace; None where it has none or says it wrongly, as W3C asks."""
    given = headers.getlist("traceparent")
    found = _TRACEPARENT.fullmatch(given[0].strip()) if len(given) == 1 else None
    if found is None or (found["version"] == "00" and found["more"]):
        return None
    state = ",".join(headers.getlist("tracestate"))[:512]
    return TraceParent(found["trace"], found["span"], bool(int(found["flags"], 16) & 1), state)


class Tracing(Protocol):
    """Makes spans of what was measured. Nothing here waits or raises."""

    def begin(self, record: "RequestRecord") -> None:
        """Give the request a span of its own, ``record.span``."""

    def end(self, record: "RequestRecord", method: str, route: str, status: int | None) -> None:
        """End the request's span and add those of its stages."""

    def batch(
        self,
        model: str,
        requests: Sequence["RequestRecord | None"],
        started_at: float,
        seconds: float,
        **attributes: str | int | float,
    ) -> None:
        """Add the span of an engine run, with a link to each request that shared it.

        ``started_at`` is in seconds of ``time.perf_counter``; ``attributes`` are strings or
        numbers, such as the trigger of the batch.
        """

    def stop(self) -> None:
        """Send what is left, within some seconds."""


def open_tracing(settings: Settings) -> Tracing | None:
    """A tracer that exports to ``settings.otlp_endpoint``; None where there is none.

    Raises :class:`TracingUnavailableError` when OpenTelemetry is not installed.
    """
    if settings.otlp_endpoint is None:
        return None
    try:
        from service.observability.spans import otlp_spans
    except ModuleNotFoundError as error:
        raise TracingUnavailableError(
            f"otlp_endpoint is set, but {error.name} is not installed. Install "
            "'centernet-serving[otel]', or leave the setting out."
        ) from error
    return otlp_spans(settings.otlp_endpoint)
