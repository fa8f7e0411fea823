"""What Prometheus sees; names follow its naming rules (base units, ``_total`` on counters)."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one service; each instance has a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "centernet_http_requests_total",
            "Answered HTTP requests.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "centernet_http_request_duration_seconds",
            "From the request's head to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.errors = Counter(
            "centernet_request_errors_total",
            "Requests answered with an error, by its code.",
            ["code"],
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "centernet_stage_duration_seconds",
            "Time one image spent in a stage.",
            ["model", "stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch_size = Histogram(
            "centernet_batch_size",
            "Images per engine run.",
            ["model"],
            buckets=_BATCH_SIZES,
            registry=self.registry,
        )
        self.body_bytes = Gauge(
            "centernet_request_body_bytes",
            "Bytes of all request bodies that are in memory.",
            registry=self.registry,
        )
        self.admitted = Gauge(
            "centernet_admitted_inputs",
            "Network inputs of the requests that are admitted and not answered yet.",
            ["model"],
            registry=self.registry,
        )
        self.admission_limit = Gauge(
            "centernet_admission_limit_inputs",
            "Network inputs that are admitted at a time; requests for more get 429.",
            ["model"],
            registry=self.registry,
        )

    def render(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self.registry)
