"""Spans through OpenTelemetry; imported only where traces are exported."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.metadata import version
from typing import Any, ParamSpec

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    TraceState,
)

from service.observability.request_record import RequestRecord
from service.observability.tracing import TraceParent

_EXPORT_TIMEOUT_S = 3.0
_STOP_TIMEOUT_S = 2.0
_log = logging.getLogger(__name__)
_Arguments = ParamSpec("_Arguments")


def _harmless(method: Callable[_Arguments, None]) -> Callable[_Arguments, None]:
    """A span that cannot be made must not cost anybody an answer."""

    @wraps(method)
    def guarded(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> None:
        try:
            method(*args, **kwargs)
        except Exception:
            _log.warning("a span could not be made", exc_info=True)

    return guarded


class Spans:
    """The :class:`service.observability.tracing.Tracing` of OpenTelemetry."""

    def __init__(self, processor: SpanProcessor) -> None:
        resource = Resource.create(
            {"service.name": "centernet-serving", "service.version": version("centernet-serving")}
        )
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("centernet-serving")

    @_harmless
    def begin(self, record: RequestRecord) -> None:
        """Give the request a span of its own, ``record.span``."""
        record.span = self._tracer.start_span(
            "request",
            _context_of(record.parent)
            if record.parent
            else trace.set_span_in_context(trace.INVALID_SPAN),
            SpanKind.SERVER,
            start_time=record.started_at_ns,
        )

    @_harmless
    def end(self, record: RequestRecord, method: str, route: str, status: int | None) -> None:
        """End the request's span and add those of its stages."""
        span = record.span
        if span is None or not span.is_recording():
            return
        ended_at_ns = _at_ns(record, time.perf_counter())
        context = trace.set_span_in_context(span)
        for stage in record.stages:
            part = self._tracer.start_span(
                stage.name, context, start_time=_at_ns(record, stage.started_at)
            )
            part.end(_at_ns(record, stage.started_at + stage.seconds))
        span.update_name(f"{method} {route}")
        facts = {
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
        span.set_attributes({name: fact for name, fact in facts.items() if fact is not None})
        if status is None or status >= 500:
            span.set_status(StatusCode.ERROR, record.code)
        span.end(ended_at_ns)

    @_harmless
    def batch(
        self,
        model: str,
        requests: Sequence[RequestRecord | None],
        started_at: float,
        seconds: float,
        **attributes: str | int | float,
    ) -> None:
        """Add the span of an engine run, with a link to each request that shared it."""
        shared_by = {id(record): record for record in requests if record and record.span}
        contexts = [record.span.get_span_context() for record in shared_by.values()]
        sampled = [context for context in contexts if context.trace_flags.sampled]
        if not sampled:
            return
        ended_at_ns = time.time_ns() - round(1e9 * (time.perf_counter() - started_at - seconds))
        span = self._tracer.start_span(
            "batch",
            trace.set_span_in_context(trace.INVALID_SPAN),  # its own trace: it has many parents
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
        """Send what is left, within some seconds."""
        # Its own bound is 30 s, which may be all that the process has left to live.
        last = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        last.start()
        last.join(_STOP_TIMEOUT_S)


def otlp_spans(endpoint: str) -> Spans:
    """Spans that a thread sends to an OTLP/HTTP receiver; when it is slow, spans are dropped.

    Resource attributes, sampling and the headers of the export follow OpenTelemetry's own
    variables (``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_TRACES_SAMPLER``,
    ``OTEL_EXPORTER_OTLP_HEADERS``).
    """
    exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_TIMEOUT_S)
    return Spans(BatchSpanProcessor(exporter))


def _context_of(parent: TraceParent) -> Any:
    remote = SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT),
        trace_state=TraceState.from_header([parent.state]),
    )
    return trace.set_span_in_context(NonRecordingSpan(remote))


def _at_ns(record: RequestRecord, moment: float) -> int:
    """A moment of ``time.perf_counter`` as nanoseconds since 1970."""
    return record.started_at_ns + round(1e9 * (moment - record.started_at))
