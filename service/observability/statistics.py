"""Cumulative inference statistics of one model, as the Open Inference Protocol reports them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class DurationStatistic:
    """Number of events and their total duration."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Add one event."""
        self.count += 1
        self.seconds += seconds


@dataclass(slots=True)
class InferenceStatistics:
    """Counters of one model since it was loaded; updated by the event loop.

    ``success`` and ``fail``: requests of every protocol, from their head to their response.
    ``queue``, ``compute_input``, ``compute_infer`` and ``compute_output``: the stages of an image,
    or of the network inputs of a request: waiting for a thread and for the engine; decoding and
    resizing; the engine run; decoding of the outputs. ``inference_count``: network inputs of
    successful engine runs; ``execution_count``: successful engine runs. ``batches``: the runs of
    each batch size. ``last_inference_ms``: time of the last run, milliseconds since 1970; 0 before
    the first.
    """

    success: DurationStatistic = field(default_factory=DurationStatistic)
    fail: DurationStatistic = field(default_factory=DurationStatistic)
    queue: DurationStatistic = field(default_factory=DurationStatistic)
    compute_input: DurationStatistic = field(default_factory=DurationStatistic)
    compute_infer: DurationStatistic = field(default_factory=DurationStatistic)
    compute_output: DurationStatistic = field(default_factory=DurationStatistic)
    inference_count: int = 0
    execution_count: int = 0
    last_inference_ms: int = 0
    batches: dict[int, DurationStatistic] = field(default_factory=dict)

    def count_stages(self, stage_s: Mapping[str, float]) -> None:
        """Add the durations of the stages, named as in the metrics."""
        self.queue.add(stage_s.get("decode_queue", 0.0) + stage_s["queue"])
        self.compute_input.add(stage_s.get("prepare", 0.0))
        self.compute_infer.add(stage_s["infer"])
        self.compute_output.add(stage_s.get("postprocess", 0.0))

    def count_batch(self, size: int, infer_s: float) -> None:
        """Count a successful engine run."""
        self.inference_count += size
        self.execution_count += 1
        self.last_inference_ms = time.time_ns() // 1_000_000
        batches = self.batches.get(size)
        if batches is None:
            batches = self.batches[size] = DurationStatistic()
        batches.add(infer_s)
