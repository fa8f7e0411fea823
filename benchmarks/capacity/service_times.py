"""Durations of the stages of one replica, measured on a running service."""

import http.client
import json
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.load import Target, closed_loop

_SATURATION = 4
"""Connections per place in a running batch, so that every batch is full."""


@dataclass(frozen=True)
class ServiceTimes:
    """Durations in seconds, as samples.

    ``run_s``: engine runs by batch size. ``prepare_s``: decoding and warp of one image.
    ``other_s``: everything else in the latency of a request that waits for nothing. ``gap_s``: time
    between two runs of a busy engine thread. ``concurrency``: concurrent runs. ``image_threads``:
    threads that prepare images.
    """

    run_s: Mapping[int, Sequence[float]]
    prepare_s: Sequence[float]
    other_s: Sequence[float]
    gap_s: float
    concurrency: int
    image_threads: int

    @property
    def max_batch_size(self) -> int:
        """The largest batch size."""
        return max(self.run_s)

    @cached_property
    def median_run_s(self) -> Mapping[int, float]:
        """Median duration of a run for every size up to the largest, interpolated if missing."""
        sizes = sorted(self.run_s)
        medians = [median(self.run_s[size]) for size in sizes]
        every = range(1, self.max_batch_size + 1)
        return dict(zip(every, np.interp(every, sizes, medians).tolist(), strict=True))

    @property
    def images_per_s(self) -> float:
        """Throughput of a replica whose batches are all full."""
        full_s = self.median_run_s[self.max_batch_size] + self.gap_s
        return self.concurrency * self.max_batch_size / full_s

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ServiceTimes":
        """Create the times from what :meth:`to_json` returned."""
        run_s = {int(size): samples for size, samples in values["run_s"].items()}
        return cls(**{**values, "run_s": run_s})

    def to_json(self) -> dict[str, Any]:
        """Return the times as values that JSON can represent."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def measure_service_times(
    port: int,
    body: Path,
    *,
    concurrency: int,
    max_batch_size: int,
    image_threads: int,
    seconds: float,
) -> ServiceTimes:
    """Measure one replica that is otherwise idle, through the proxy at ``port``.

    ``concurrency``, ``max_batch_size`` and ``image_threads`` are those of the replica. ``seconds``:
    duration of each of the measurements with different numbers of connections.
    """
    run_s: dict[int, list[float]] = defaultdict(list)
    prepare_s: list[float] = []
    other_s: list[float] = []
    places = concurrency * max_batch_size
    # Runs are full only if a full batch is queued for each of them as well.
    for connections in sorted({1, concurrency, places // 2, places, 2 * places, 3 * places}):
        for batch_size, latency_s, stage_s in _request(port, body, connections, seconds):
            run_s[batch_size].append(stage_s["infer"])
            if connections == 1:
                prepare_s.append(stage_s["prepare"])
                other_s.append(latency_s - sum(stage_s.values()))
    saturated = closed_loop(
        Target(port, "/detect", [body]), seconds, _SATURATION * places, warmup_s=1.0
    )
    if not saturated.all_ok:
        raise RuntimeError(f"some requests at saturation did not succeed: {saturated}")
    full_s = places / saturated.images_per_second
    return ServiceTimes(
        dict(sorted(run_s.items())),
        prepare_s,
        other_s,
        max(0.0, full_s - median(run_s[max_batch_size])),
        concurrency,
        image_threads,
    )


def _request(
    port: int, body: Path, connections: int, seconds: float
) -> list[tuple[int, float, dict[str, float]]]:
    """Send requests on each connection, one after the other, for ``seconds``.

    Returns the batch size, the latency and the durations of the stages of each, in seconds.
    """
    image = body.read_bytes()
    results: list[tuple[int, float, dict[str, float]]] = []
    end_at = time.perf_counter() + seconds

    def send() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while time.perf_counter() < end_at:
            began_at = time.perf_counter()
            connection.request("POST", "/detect", image, {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            text = response.read()
            latency_s = time.perf_counter() - began_at
            if response.status != 200:
                raise RuntimeError(f"the service returned {response.status}: {text.decode()}")
            stage_s = {name: ms / 1000 for name, ms in json.loads(text)["timing_ms"].items()}
            results.append((int(response.headers["X-Batch-Size"]), latency_s, stage_s))
        connection.close()

    threads = [threading.Thread(target=send) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not results:
        raise RuntimeError("no request succeeded; see the errors above")
    return results
