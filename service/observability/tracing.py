"""Traces: W3C trace context through opentelemetry-api, spans through opentelemetry-sdk.

The SDK is imported only where traces are exported; it is the extra ``otel``.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.metadata import version
from typing import TYPE_CHECKING, ParamSpec

from opentelemetry import trace
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers

from service.observability.request_record import RequestRecord
from service.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

_EXPORT_TIMEOUT_S = 3.0
_STOP_TIMEOUT_S = 2.0
_MAX_TRACESTATE_LENGTH = 512  # W3C Trace Context, 3.3.1.5: at least this must be propagated
_log = logging.getLogger(__name__)
_propagator = TraceContextTextMapPropagator()
# Its warnings about invalid trace states quote the header, which is untrusted input.
logging.getLogger("opentelemetry.trace.span").setLevel(logging.ERROR)
_Arguments = ParamSpec("_Arguments")


class TracingUnavailableError(Exception):
    """Traces are configured, but OpenTelemetry's SDK is not installed."""


def read_trace_context(headers: Headers) -> SpanContext | None:
    """Return the caller's span context; None if there is none or it is not valid (W3C)."""
    if len(headers.getlist("traceparent")) != 1:
        return None
    carrier = {"traceparent": headers["traceparent"]}
    state = ",".join(headers.getlist("tracestate"))
    if len(state) <= _MAX_TRACESTATE_LENGTH:
        carrier["tracestate"] = state
    context = trace.get_current_span(_propagator.extract(carrier)).get_span_context()
    return context if context.is_valid else None


def _log_errors(method: Callable[_Arguments, None]) -> Callable[_Arguments, None]:
    """Log exceptions instead of raising them: a failing span must not fail the request."""

    @wraps(method)
    def guarded(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> None:
        try:
            method(*args, **kwargs)
        except Exception:
            _log.warning("a span could not be recorded", exc_info=True)

    return guarded


class Tracing:
    """Spans from request records. No method blocks or, except for the constructor, raises.

    ``processor``: OpenTelemetry span processor that receives the finished spans.
    """

    def __init__(self, processor: "SpanProcessor") -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        resource = Resource.create(
            {"service.name": "centernet-serving", "service.version": version("centernet-serving")}
        )
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("centernet-serving")

    @_log_errors
    def begin(self, record: RequestRecord) -> None:
        """Start the span of a request, ``record.span``."""
        parent = trace.INVALID_SPAN if record.parent is None else NonRecordingSpan(record.parent)
        record.span = self._tracer.start_span(
            "request",
            trace.set_span_in_context(parent),
            SpanKind.SERVER,
            start_time=record.started_at_ns,
        )

    @_log_errors
    def end(self, record: RequestRecord, method: str, route: str, status: int | None) -> None:
        """End the span of a request and add spans of its stages."""
        span = record.span
        if span is None or not span.is_recording():
            return
        ended_at_ns = _at_ns(record, time.perf_counter())
        context = trace.set_span_in_context(span)
        for stage in record.stages:
            child = self._tracer.start_span(
                stage.name, context, start_time=_at_ns(record, stage.started_at)
            )
            child.end(_at_ns(record, stage.started_at + stage.seconds))
        span.update_name(f"{method} {route}")
        attributes = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "http.request.body.size": record.body_bytes,
            "client.address": record.client,
            "error.type": record.code,
            "centernet.request_id": record.request_id,
            "centernet.model": record.model,
            "centernet.batch_size": record.batch_size,
        }
        span.set_attributes(
            {name: value for name, value in attributes.items() if value is not None}
        )
        if status is None or status >= 500:
            span.set_status(StatusCode.ERROR, record.code)
        span.end(ended_at_ns)

    @_log_errors
    def batch(
        self,
        model: str,
        requests: Sequence[RequestRecord | None],
        started_at: float,
        seconds: float,
        **attributes: str | int | float,
    ) -> None:
        """Add the span of an engine run, linked to the requests whose inputs it contained.

        ``started_at`` is in seconds of :func:`time.perf_counter`; ``attributes`` are attributes of
        the span, such as the trigger of the batch.
        """
        records = {id(record): record for record in requests if record and record.span}
        contexts = [record.span.get_span_context() for record in records.values()]
        sampled = [context for context in contexts if context.trace_flags.sampled]
        if not sampled:
            return
        ended_at_ns = time.time_ns() - round(1e9 * (time.perf_counter() - started_at - seconds))
        span = self._tracer.start_span(
            "batch",
            trace.set_span_in_context(trace.INVALID_SPAN),  # a trace of its own: several parents
            attributes={
                **attributes,
                "centernet.model": model,
                "centernet.batch_size": len(requests),
            },
            links=[Link(context) for context in sampled],
            start_time=ended_at_ns - round(1e9 * seconds),
        )
        span.end(ended_at_ns)

    def stop(self) -> None:
        """Export the remaining spans, for at most a few seconds."""
        # The provider's own timeout is 30 s, which may exceed the grace period of the process.
        shutdown = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        shutdown.start()
        shutdown.join(_STOP_TIMEOUT_S)


def open_tracing(settings: Settings) -> Tracing | None:
    """Return a tracer that exports to ``settings.otlp_endpoint``; None without an endpoint.

    A background thread exports to the OTLP/HTTP receiver; spans are dropped if that is too slow.
    Resource attributes, sampling and headers of the export follow OpenTelemetry's variables
    (``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_TRACES_SAMPLER``, ``OTEL_EXPORTER_OTLP_HEADERS``).

    Raises :class:`TracingUnavailableError` if the SDK is not installed.
    """
    if settings.otlp_endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        endpoint = f"{settings.otlp_endpoint.rstrip('/')}/v1/traces"
        exporter = OTLPSpanExporter(endpoint, timeout=_EXPORT_TIMEOUT_S)
        return Tracing(BatchSpanProcessor(exporter))
    except ModuleNotFoundError as error:
        raise TracingUnavailableError(
            f"otlp_endpoint is set, but {error.name} is not installed. Install "
            "'centernet-serving[otel]', or remove the setting."
        ) from error


def _at_ns(record: RequestRecord, at: float) -> int:
    """Convert a time of :func:`time.perf_counter` to nanoseconds since the epoch."""
    return record.started_at_ns + round(1e9 * (at - record.started_at))
