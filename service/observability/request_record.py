"""The record of one request: the source of its log line and its spans."""

import random
import re
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.trace import SpanContext, format_trace_id

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def choose_request_id(received: str) -> str:
    """Return the id that the client sent if it is printable, otherwise a new one."""
    return received if _REQUEST_ID.fullmatch(received) else new_request_id()


def new_request_id() -> str:
    """Return an id for a request without one: 32 random hex digits, not a secret."""
    return f"{random.getrandbits(128):032x}"


@dataclass(frozen=True)
class Stage:
    """One stage of a request; ``started_at`` in seconds of :func:`time.perf_counter`."""

    name: str
    started_at: float
    seconds: float


@dataclass
class RequestRecord:
    """One request; filled while it is processed and read at its end.

    ``parent``: the span context in the ``traceparent`` header. ``span``: the request's own span,
    where traces are exported. ``code``: the code of its error.
    """

    request_id: str
    client: str
    parent: SpanContext | None = None
    span: Any = None
    started_at: float = field(default_factory=time.perf_counter)
    started_at_ns: int = field(default_factory=time.time_ns)
    code: str | None = None
    model: str | None = None
    body_bytes: int | None = None
    batch_size: int | None = None
    stages: list[Stage] = field(default_factory=list)

    @property
    def trace_id(self) -> str | None:
        """32 hex digits of the request's own span, or else of its parent."""
        context = self.parent if self.span is None else self.span.get_span_context()
        return None if context is None else format_trace_id(context.trace_id)

    def record_body(self, size: int) -> None:
        """Record the end of the body and its size in bytes."""
        self.body_bytes = size
        self.stages.append(Stage("read", self.started_at, time.perf_counter() - self.started_at))

    def record_prediction(self, model: str, batch_size: int, stage_s: Mapping[str, float]) -> None:
        """Record a prediction that ends now; ``stage_s`` is in the order of the stages."""
        self.model, self.batch_size = model, batch_size
        # Laid out backwards from now: before the first stage, the header of the image was read.
        started_at = time.perf_counter() - sum(stage_s.values())
        for name, seconds in stage_s.items():
            self.stages.append(Stage(name, started_at, seconds))
            started_at += seconds


current_record: ContextVar[RequestRecord | None] = ContextVar("current_record", default=None)
"""The record of the request that the running task belongs to; inherited by its child tasks."""
