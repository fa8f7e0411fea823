"""Observer of the batcher that records metrics and spans."""

from service.batching.types import BatchRun
from service.observability.metrics import ModelMetrics
from service.observability.statistics import InferenceStatistics
from service.observability.tracing import Tracing


class MetricsBatchObserver:
    """The :class:`service.batching.types.BatchObserver` for metrics, statistics and spans."""

    def __init__(
        self,
        model: str,
        metrics: ModelMetrics,
        statistics: InferenceStatistics,
        tracing: Tracing | None,
    ) -> None:
        self._model = model
        self._metrics = metrics
        self._statistics = statistics
        self._tracing = tracing
        self.cancelled = metrics.cancelled

    def batch_done(self, run: BatchRun) -> None:
        """Record a successful run."""
        self._metrics.batch(len(run.requests), run.trigger)
        self._statistics.count_batch(len(run.requests), run.infer_s)
        if self._tracing is not None:
            self._tracing.batch(
                self._model, run.requests, run.started_at, run.infer_s, trigger=run.trigger
            )
