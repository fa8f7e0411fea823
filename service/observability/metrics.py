"""Prometheus metrics; names follow its conventions (base units, ``_total`` for counters)."""

from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Literal, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import Metric

_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
_DIFFERENCES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5)
_IOUS = (0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 1.0)
_MODEL = ("model", "version")
"""Labels of the series of one version of a model, which are removed when it is unloaded."""

_Metric = TypeVar("_Metric", Counter, Gauge, Histogram)


class Metrics:
    """The metrics of one process, in a registry of their own.

    ``worker``: index of a worker process, or id of a replica; a label of each of its series.
    """

    def __init__(self, worker: int | str | None = None) -> None:
        self.registry = CollectorRegistry()
        self._worker = worker
        self._of_models: list[Counter | Gauge | Histogram] = []
        # Looking up a series by its labels costs several microseconds each time.
        self._request_series: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}
        ProcessCollector(registry=self.registry)
        self.requests = self._counter(
            "http_requests", "Completed HTTP requests.", "route", "method", "status"
        )
        self.request_seconds = self._histogram(
            "http_request_duration_seconds",
            "Time from the head of a request to the end of its response.",
            "route",
        )
        self.errors = self._counter("request_errors", "Error responses by error code.", "code")
        self.body_bytes = self._gauge("request_body_bytes", "Bytes of request bodies in memory.")
        self._decode_queue = self._gauge(
            "decode_queue_images", "Images that are waiting to be decoded, of all models."
        )
        self._decode_queue_age = self._gauge(
            "decode_queue_oldest_age_seconds",
            "Time that the oldest image has been waiting to be decoded.",
        )
        self._decoding_bytes = self._gauge(
            "decoding_memory_bytes", "Stated memory of the images that are being decoded."
        )
        self.event_loop_lag = self._gauge(
            "event_loop_lag_seconds", "Maximum delay of the event loop in the last second."
        )
        self._gauge("build_info", "The version of the service.", "version").labels(
            version("centernet-serving")
        ).set(1)
        self.stage_seconds = self._histogram(
            "stage_duration_seconds", "Time that one image spent in a stage.", *_MODEL, "stage"
        )
        self.batch_size = self._histogram(
            "batch_size", "Batch size of engine runs.", *_MODEL, buckets=_BATCH_SIZES
        )
        self.batches = self._counter(
            "batches", "Engine runs by trigger of the batch.", *_MODEL, "trigger"
        )
        self.images = self._counter("images", "Network inputs of successful engine runs.", *_MODEL)
        self.cancelled = self._counter(
            "cancelled_inputs",
            "Network inputs that were cancelled (client disconnected, deadline exceeded): in the "
            "queue, or during their run (infer), whose engine time was wasted.",
            *_MODEL,
            "stage",
        )
        self.queue = self._gauge("queue_inputs", "Admitted network inputs.", *_MODEL)
        self.queue_limit = self._gauge(
            "queue_limit_inputs",
            "Maximum number of admitted network inputs; further requests get 429.",
            *_MODEL,
        )
        self.queue_oldest_age = self._gauge(
            "queue_oldest_age_seconds",
            "Time that the oldest network input has been queued.",
            *_MODEL,
        )
        self.calibrated_rate = self._gauge(
            "engine_calibrated_images_per_second",
            "Throughput of the engine alone, measured at warm-up.",
            *_MODEL,
        )
        self.engine_seconds_per_image = self._gauge(
            "engine_seconds_per_image", "Slope of the latency model of a run.", *_MODEL
        )
        self.engine_seconds_per_batch = self._gauge(
            "engine_seconds_per_batch", "Base of the latency model of a run.", *_MODEL
        )
        self.model_ready = self._gauge("model_ready", "Whether the model is ready.", *_MODEL)
        self.model_loading = self._gauge(
            "model_loading", "Whether a model package is being loaded."
        )
        self.model_loads = self._counter(
            "model_loads", "Attempts to load a model package by result.", "result"
        )
        for result in ("ok", "failed"):
            self.model_loads.labels(result)
        self.engine_info = self._gauge(
            "engine_info", "Runtime, version, precision and device of a model.", *_MODEL, "engine"
        )
        self.build_progress = self._gauge(
            "engine_build_progress_ratio",
            "Progress of building the engines of a model before it is loaded.",
            *_MODEL,
        )
        self.self_test_runs = self._counter(
            "self_test_runs", "Self-test runs by result.", *_MODEL, "result"
        )

        shadow = (*_MODEL, "shadow")
        self.shadow_runs = self._counter(
            "shadow_runs",
            "Requests that were to be compared with a shadow version: compared, skipped because "
            "there was no free capacity, failed.",
            *shadow,
            "result",
        )
        self.shadow_detections = self._counter(
            "shadow_detections",
            "Detections of the compared requests: matched, missing in those of the shadow, extra "
            "in those of the shadow.",
            *shadow,
            "result",
        )
        self.shadow_score_difference = self._histogram(
            "shadow_score_difference",
            "Absolute difference of the scores of matched detections.",
            *shadow,
            buckets=_DIFFERENCES,
        )
        self.shadow_score_difference_max = self._gauge(
            "shadow_score_difference_max",
            "Largest absolute difference of the scores of matched detections.",
            *shadow,
        )
        self.shadow_box_iou = self._histogram(
            "shadow_box_iou", "IoU of the boxes of matched detections.", *shadow, buckets=_IOUS
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return self._add(
            Counter(f"centernet_{name}_total", text, labels, registry=self.registry), labels
        )

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return self._add(Gauge(f"centernet_{name}", text, labels, registry=self.registry), labels)

    def _histogram(
        self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS
    ) -> Histogram:
        name = f"centernet_{name}"
        return self._add(
            Histogram(name, text, labels, buckets=buckets, registry=self.registry), labels
        )

    def _add(self, metric: _Metric, labels: tuple[str, ...]) -> _Metric:
        if labels[: len(_MODEL)] == _MODEL:
            self._of_models.append(metric)
        return metric

    def record_request(self, route: str, method: str, status: str, seconds: float) -> None:
        """Count a completed request and record its duration."""
        key = (route, method, status)
        series = self._request_series.get(key)
        if series is None:
            series = self.requests.labels(*key), self.request_seconds.labels(route)
            self._request_series[key] = series
        series[0].inc()
        series[1].observe(seconds)

    def remove_model(self, model: str, version: str) -> None:
        """Remove every series of a version of a model."""
        labels = model, version
        for gauge in (
            self.queue,
            self.queue_oldest_age,
            self.engine_seconds_per_image,
            self.engine_seconds_per_batch,
            self.model_ready,
        ):
            # A gauge with a function is part of a reference cycle, which the garbage collector may
            # not see (gc.freeze). The function refers to the model.
            gauge.labels(*labels).set_function(float)
        for metric in self._of_models:
            metric.remove_by_labels(dict(zip(_MODEL, labels, strict=True)))

    def watch_image_pool(
        self,
        *,
        depth: Callable[[], float],
        oldest_age_s: Callable[[], float],
        held_bytes: Callable[[], float],
    ) -> None:
        """Read the state of the pool that decodes images whenever the metrics are read."""
        self._decode_queue.set_function(depth)
        self._decode_queue_age.set_function(oldest_age_s)
        self._decoding_bytes.set_function(held_bytes)

    def queue_age_s(self) -> float:
        """Return how long the oldest image has been waiting, to be decoded or for an engine."""
        ages = self._decode_queue_age, self.queue_oldest_age
        return max(
            (sample.value for age in ages for one in age.collect() for sample in one.samples),
            default=0.0,
        )

    def render(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        if self._worker is None:
            return generate_latest(self.registry)
        return generate_latest(_LabelledMetrics(self.registry, self._worker))


class _LabelledMetrics(CollectorRegistry):
    """The metrics of a registry, with the label ``worker``."""

    def __init__(self, registry: CollectorRegistry, worker: int | str) -> None:
        super().__init__()
        self._registry = registry
        self._label = {"worker": str(worker)}

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [
                sample._replace(labels={**self._label, **sample.labels})
                for sample in metric.samples
            ]
            yield metric


def merge_metrics(texts: Sequence[bytes]) -> bytes:
    """Merge the metrics of several processes, whose series have different labels.

    The text format requires that all series of a metric are together.
    """
    series: dict[tuple[bytes, ...], list[bytes]] = {}
    for text in texts:
        for metric in text.removesuffix(b"\n").split(b"\n# HELP "):
            description, kind, *samples = metric.removeprefix(b"# HELP ").split(b"\n")
            series.setdefault((description, kind), []).extend(samples)
    lines = []
    for (description, kind), samples in series.items():
        lines += [b"# HELP " + description, kind, *samples]
    return b"\n".join(lines) + b"\n"


class ModelMetrics:
    """The metrics of one version of a model; every series exists from the start, at zero."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        self._metrics = metrics
        self._labels = model, version
        self._images = metrics.images.labels(*self._labels)
        self._batch_size = metrics.batch_size.labels(*self._labels)
        self._batches = {
            trigger: metrics.batches.labels(*self._labels, trigger)
            for trigger in ("full", "idle", "timeout", "deadline")
        }
        self._cancelled = {
            stage: metrics.cancelled.labels(*self._labels, stage) for stage in ("queue", "infer")
        }
        self._self_tests = {
            result: metrics.self_test_runs.labels(*self._labels, result)
            for result in ("ok", "wrong", "failed")
        }
        self._stages = {
            stage: metrics.stage_seconds.labels(*self._labels, stage)
            for stage in ("decode_queue", "prepare", "queue", "infer", "postprocess")
        }

    def batch(self, size: int, trigger: str) -> None:
        """Count a successful run."""
        self._images.inc(size)
        self._batch_size.observe(size)
        self._batches[trigger].inc()

    def cancelled(self, stage: Literal["queue", "infer"]) -> None:
        """Count a cancelled input."""
        self._cancelled[stage].inc()

    def stage(self, stage: str, seconds: float) -> None:
        """Record the time that one image spent in a stage."""
        self._stages[stage].observe(seconds)

    def self_test(self, result: Literal["ok", "wrong", "failed"]) -> None:
        """Count a run of the self-test."""
        self._self_tests[result].inc()

    def watch(
        self,
        engine: str,
        *,
        images_per_s: float,
        limit: int,
        admitted: Callable[[], float],
        oldest_age_s: Callable[[], float],
        seconds_per_image: Callable[[], float],
        seconds_per_batch: Callable[[], float],
        is_ready: Callable[[], bool],
    ) -> None:
        """Set the constant gauges, and the functions that each scrape calls for the others."""
        metrics, labels = self._metrics, self._labels
        # A model of the same version that this one replaces may have had another engine.
        metrics.engine_info.remove_by_labels(dict(zip(_MODEL, labels, strict=True)))
        metrics.engine_info.labels(*labels, engine).set(1)
        metrics.calibrated_rate.labels(*labels).set(images_per_s)
        metrics.queue_limit.labels(*labels).set(limit)
        metrics.queue.labels(*labels).set_function(admitted)
        metrics.queue_oldest_age.labels(*labels).set_function(oldest_age_s)
        metrics.engine_seconds_per_image.labels(*labels).set_function(seconds_per_image)
        metrics.engine_seconds_per_batch.labels(*labels).set_function(seconds_per_batch)
        metrics.model_ready.labels(*labels).set_function(is_ready)


class ShadowMetrics:
    """The metrics of the comparison of a shadow version with the version that is served."""

    def __init__(self, metrics: Metrics, model: str, version: str, shadow: str) -> None:
        labels = model, version, shadow
        self._metrics = metrics
        self._labels = dict(zip((*_MODEL, "shadow"), labels, strict=True))
        self._runs = {
            result: metrics.shadow_runs.labels(*labels, result)
            for result in ("compared", "skipped", "failed")
        }
        self._detections = {
            result: metrics.shadow_detections.labels(*labels, result)
            for result in ("matched", "missing", "extra")
        }
        self._score_difference = metrics.shadow_score_difference.labels(*labels)
        self._max_difference = metrics.shadow_score_difference_max.labels(*labels)
        self._box_iou = metrics.shadow_box_iou.labels(*labels)
        self._max = 0.0

    def request(self, result: Literal["compared", "skipped", "failed"]) -> None:
        """Count a request that was to be compared."""
        self._runs[result].inc()

    def agreement(
        self, missing: int, extra: int, differences: Sequence[float], ious: Sequence[float]
    ) -> None:
        """Record a comparison; one difference of the scores and one IoU for each matched pair."""
        self._detections["matched"].inc(len(ious))
        self._detections["missing"].inc(missing)
        self._detections["extra"].inc(extra)
        for difference, iou in zip(differences, ious, strict=True):
            self._score_difference.observe(difference)
            self._box_iou.observe(iou)
        self._max = max(self._max, *differences, 0.0)
        self._max_difference.set(self._max)

    def remove(self) -> None:
        """Remove every series."""
        metrics = self._metrics
        for metric in (
            metrics.shadow_runs,
            metrics.shadow_detections,
            metrics.shadow_score_difference,
            metrics.shadow_score_difference_max,
            metrics.shadow_box_iou,
        ):
            metric.remove_by_labels(self._labels)
