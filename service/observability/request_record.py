"""What becomes known of one request on its way: the source of its log line and of its spans."""

import random
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from service.observability.tracing import TraceParent


def new_request_id() -> str:
    """An id for a request whose client gave none: 32 random hex digits, which are no secret."""
    return f"{random.getrandbits(128):032x}"


@dataclass(frozen=True)
class Stage:
    """One part of a request; ``started_at`` in seconds of ``time.perf_counter``."""

    name: str
    started_at: float
    seconds: float


@dataclass
class RequestRecord:
    """One request. Whoever learns something of it notes it here; nobody reads it before the end.

    ``parent``: what the client's ``traceparent`` header said. ``span``: the request's own span,
    where traces are exported.
    """

    request_id: str
    client: str
    parent: TraceParent | None = None
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
        """32 hex digits: of our own span, or else of the client's trace."""
        if self.span is not None:
            return format(self.span.get_span_context().trace_id, "032x")
        return self.parent.trace_id if self.parent else None

    def record_body(self, size: int) -> None:
        """The whole body is here."""
        self.body_bytes = size
        self.stages.append(Stage("read", self.started_at, time.perf_counter() - self.started_at))

    def record_prediction(self, model: str, batch_size: int, stage_s: Mapping[str, float]) -> None:
        """The answer is known, just now; ``stage_s`` is in the order of the stages."""
        self.model, self.batch_size = model, batch_size
        # Laid out from the end: what no stage accounts for is the wait for the image pool, and
        # that comes first.
        started_at = time.perf_counter() - sum(stage_s.values())
        for name, seconds in stage_s.items():
            self.stages.append(Stage(name, started_at, seconds))
            started_at += seconds


current_record: ContextVar[RequestRecord | None] = ContextVar("current_record", default=None)
"""The request that the running task works for; tasks that it starts inherit it."""
