"""Discrete-event simulation of replicas behind a load balancer.

A request passes, in one replica: everything that takes time but no resource (network, HTTP), a
thread that prepares its image, and the queue of the batcher. Batches are formed by the service's
own :class:`~service.batching.batch_policy.BatchPolicy`; only the clock and the durations are
simulated, the latter drawn from measured ones. The processor is not modelled: stages that compete
for cores are slower only if they were when they were measured.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from benchmarks.capacity.service_times import ServiceTimes
from service.batching.batch_policy import BatchPolicy
from service.batching.batcher import RUN_OVERHEAD_S
from service.batching.latency_model import ArrivalRate, LatencyModel
from service.batching.types import (
    BatchInput,
    BatchLimits,
    BatchRequest,
    QueueEntry,
    SchedulingOptions,
    total_work,
)

Balancer = Literal["least connections", "random"]
"""How requests are distributed: to the replica with the fewest open requests, or at random, as by
kube-proxy for connections with one request each."""
BALANCERS: tuple[Balancer, ...] = get_args(Balancer)

_WARMUP = 0.1
"""Share of the requests at the start that are not counted."""
_BLOCK = 4096
_INPUT = BatchInput(np.zeros((1, 1, 3), np.uint8))
_NO_LIMITS = SchedulingOptions()


class _Pending:
    """A future that is never done: simulated requests are not cancelled."""

    def done(self) -> bool:
        return False


_PENDING: Any = _Pending()


class _Samples:
    """Values drawn from samples with replacement."""

    def __init__(self, samples: Sequence[float], random: np.random.Generator) -> None:
        self._samples = np.asarray(samples)
        self._random = random
        self._drawn: list[float] = []

    def draw(self) -> float:
        if not self._drawn:
            self._drawn = self._random.choice(self._samples, _BLOCK).tolist()
        return self._drawn.pop()


@dataclass
class _Replica:
    """The queues of one replica; ``entries`` maps an entry in the queue to its request."""

    policy: BatchPolicy
    latency: LatencyModel
    arrivals: ArrivalRate = field(default_factory=ArrivalRate)
    queue: list[QueueEntry] = field(default_factory=list)
    requests: dict[int, int] = field(default_factory=dict)
    running: int = 0
    preparing: int = 0
    images: deque[int] = field(default_factory=deque)


def simulate(
    times: ServiceTimes,
    *,
    replicas: int,
    load: float,
    requests: int,
    balancer: Balancer = "least connections",
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return the latencies in seconds of requests that arrive at random (Poisson).

    ``load``: the rate of arrivals relative to ``replicas * times.images_per_s``, below 1.
    ``requests``: their number, including those that are not counted while the queues fill.
    """
    interval_s = 1 / (load * replicas * times.images_per_s)
    sent_s = np.cumsum(np.random.default_rng(seed).exponential(interval_s, requests))
    latencies_s = simulate_arrivals(
        times, sent_s, replicas=replicas, balancer=balancer, seed=seed + 1
    )
    return latencies_s[int(_WARMUP * requests) :]


def simulate_arrivals(
    times: ServiceTimes,
    sent_s: Sequence[float] | NDArray[np.float64],
    *,
    replicas: int,
    balancer: Balancer = "least connections",
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return the latencies in seconds of requests that are sent at these times, which ascend."""
    return _Simulation(times, replicas, balancer, seed).run(np.asarray(sent_s))


class _Simulation:
    def __init__(self, times: ServiceTimes, replicas: int, balancer: Balancer, seed: int) -> None:
        random = np.random.default_rng(seed)
        self._times = times
        self._random = random
        self._prepare = _Samples(times.prepare_s, random)
        self._other = _Samples(times.other_s, random)
        ratios = [
            sample / times.median_run_s[size]
            for size, samples in times.run_s.items()
            for sample in samples
        ]
        self._run_ratio = _Samples(ratios, random)
        limits = BatchLimits(times.max_batch_size, run_overhead_s=RUN_OVERHEAD_S)
        self._replicas = []
        for _ in range(replicas):
            latency = LatencyModel(times.median_run_s.items())
            policy = BatchPolicy(limits, latency, times.concurrency)
            self._replicas.append(_Replica(policy, latency))
        self._open = np.zeros(replicas, np.int64)
        self._choose = _chooser(balancer, self._open, random)
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._scheduled = 0

    def run(self, sent_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the latency of each request."""
        self._done_s = np.full(len(sent_s), math.nan)
        self._chosen = np.zeros(len(sent_s), np.int64)
        for request, at in enumerate(sent_s.tolist()):
            # Events before this request arrives.
            while self._events and self._events[0][0] <= at:
                self._step()
            self._send(at, request)
        while self._events:
            self._step()
        return self._done_s - sent_s

    def _step(self) -> None:
        at, _, handle, arguments = heapq.heappop(self._events)
        handle(at, *arguments)

    def _at(self, at: float, handle: Callable[..., None], *arguments: object) -> None:
        self._scheduled += 1  # events at the same time keep their order
        heapq.heappush(self._events, (at, self._scheduled, handle, arguments))

    def _send(self, at: float, request: int) -> None:
        index = self._choose()
        self._chosen[request] = index
        self._open[index] += 1
        self._at(at + self._other.draw(), self._receive, self._replicas[index], request)

    def _receive(self, at: float, replica: _Replica, request: int) -> None:
        replica.images.append(request)
        self._prepare_next(at, replica)

    def _prepare_next(self, at: float, replica: _Replica) -> None:
        while replica.images and replica.preparing < self._times.image_threads:
            replica.preparing += 1
            request = replica.images.popleft()
            self._at(at + self._prepare.draw(), self._enqueue, replica, request)

    def _enqueue(self, at: float, replica: _Replica, request: int) -> None:
        replica.preparing -= 1
        self._prepare_next(at, replica)
        entry = QueueEntry(_INPUT, BatchRequest(_PENDING, _NO_LIMITS))
        entry.arrived_at = entry.sort_key = at
        replica.queue.append(entry)
        replica.requests[id(entry)] = request
        replica.arrivals.observe(at)
        self._start_runs(at, replica, was_idle=True)

    def _start_runs(self, at: float, replica: _Replica, *, was_idle: bool) -> None:
        while replica.queue and replica.running < self._times.concurrency:
            batch = replica.policy.decide(
                replica.queue,
                replica.arrivals,
                at,
                was_idle=was_idle,
                engine_idle=not replica.running,
                stopping=False,
            ).batch
            for entry in batch:
                replica.queue.remove(entry)
            replica.running += 1
            run_s = self._times.median_run_s[len(batch)] * self._run_ratio.draw()
            self._at(at + run_s, self._end_run, replica, batch, run_s)

    def _end_run(self, at: float, replica: _Replica, batch: list[QueueEntry], run_s: float) -> None:
        replica.latency.observe(total_work(batch), run_s)
        for entry in batch:
            request = replica.requests.pop(id(entry))
            self._done_s[request] = at
            self._open[self._chosen[request]] -= 1
        self._at(at + self._times.gap_s, self._end_gap, replica)

    def _end_gap(self, at: float, replica: _Replica) -> None:
        replica.running -= 1
        self._start_runs(at, replica, was_idle=False)


def _chooser(
    balancer: Balancer, open_requests: NDArray[np.int64], random: np.random.Generator
) -> Callable[[], int]:
    """Return a function that chooses the replica of the next request."""
    count = len(open_requests)
    if balancer == "random":
        return lambda: int(random.integers(count))

    last = -1

    def least_connections() -> int:
        nonlocal last
        fewest = np.flatnonzero(open_requests == open_requests.min())
        # Equal ones take turns.
        last = int(fewest[np.searchsorted(fewest, last + 1) % len(fewest)])
        return last

    return least_connections
