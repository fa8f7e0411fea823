"""The queueing simulation against results of queueing theory, and the measurement of its times."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.capacity import sleeping_engine
from benchmarks.capacity.__main__ import _run_replicas
from benchmarks.capacity.service_times import ServiceTimes, measure_service_times
from benchmarks.capacity.simulation import BALANCERS, Balancer, simulate

RUN_S = 0.02
ONE = ServiceTimes(
    run_s={1: [RUN_S]},
    prepare_s=[0.0],
    other_s=[0.0],
    gap_s=0.0,
    concurrency=1,
    image_threads=1000,
)
"""One run of one image at a time, and nothing else: a single server with a queue."""
BATCHES = replace(
    ONE,
    run_s={1: [0.025], 2: [0.045], 4: [0.085]},
    prepare_s=[0.001],
    other_s=[0.002],
    concurrency=2,
)


def p99(latencies_s: np.ndarray) -> float:
    return float(np.percentile(latencies_s, 99))


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_fixed_durations_give_the_mean_of_an_md1_queue(load: float) -> None:
    latencies_s = simulate(ONE, replicas=1, load=load, requests=100_000)
    expected_s = RUN_S * (1 + load / (2 * (1 - load)))  # Pollaczek-Khinchine
    assert latencies_s.mean() == pytest.approx(expected_s, rel=0.04)


def test_exponential_durations_give_the_distribution_of_an_mm1_queue() -> None:
    random = np.random.default_rng(1)
    durations_s = random.exponential(RUN_S, 20_001)
    times = replace(ONE, run_s={1: durations_s.tolist()})
    rate = 0.6 / RUN_S
    latencies_s = simulate(times, replicas=1, load=rate / times.images_per_s, requests=100_000)
    mean_s = RUN_S / (1 - 0.6)
    assert latencies_s.mean() == pytest.approx(mean_s, rel=0.06)
    assert p99(latencies_s) == pytest.approx(mean_s * math.log(100), rel=0.08)


def test_random_balancing_of_many_replicas_equals_independent_queues() -> None:
    one = simulate(ONE, replicas=1, load=0.7, requests=100_000)
    many = simulate(ONE, replicas=20, load=0.7, requests=100_000, balancer="random")
    assert many.mean() == pytest.approx(one.mean(), rel=0.05)
    assert p99(many) == pytest.approx(p99(one), rel=0.1)


def test_fewest_connections_of_many_replicas_nearly_removes_queueing() -> None:
    latencies_s = simulate(ONE, replicas=100, load=0.7, requests=50_000)
    assert np.percentile(latencies_s, 90) == pytest.approx(RUN_S)


def test_fewest_connections_have_a_lower_p99_than_random_replicas() -> None:
    values = {
        balancer: p99(simulate(BATCHES, replicas=4, load=0.8, requests=40_000, balancer=balancer))
        for balancer in BALANCERS
    }
    assert values["random"] > 1.5 * values["least connections"]


@pytest.mark.parametrize("balancer", BALANCERS)
def test_every_request_ends_and_takes_at_least_its_own_stages(balancer: Balancer) -> None:
    latencies_s = simulate(BATCHES, replicas=3, load=0.9, requests=20_000, balancer=balancer)
    assert len(latencies_s) == 18_000
    assert np.isfinite(latencies_s).all()
    assert latencies_s.min() == pytest.approx(0.002 + 0.001 + 0.025)


def test_batches_sustain_a_rate_that_single_images_cannot() -> None:
    singles_per_s = BATCHES.concurrency / BATCHES.median_run_s[1]
    assert BATCHES.images_per_s > 1.1 * singles_per_s
    # Without batches the queue would grow to 1.4 s during these requests.
    load = 1.07 * singles_per_s / BATCHES.images_per_s
    assert p99(simulate(BATCHES, replicas=1, load=load, requests=20_000)) < 0.6


def test_missing_batch_sizes_are_interpolated_and_json_keeps_the_times() -> None:
    assert BATCHES.median_run_s[3] == pytest.approx(0.065)
    assert ServiceTimes.from_json(BATCHES.to_json()) == BATCHES


@pytest.mark.slow
def test_service_times_are_measured_on_a_running_replica(project: Path) -> None:
    with _run_replicas(None, (1, 2)) as ports:
        times = measure_service_times(
            ports[2],
            project / "docs/samples/blood_smear_1.jpg",
            concurrency=sleeping_engine.CONCURRENCY,
            max_batch_size=sleeping_engine.MAX_BATCH_SIZE,
            image_threads=1,
            seconds=0.6,
        )
    assert {1, sleeping_engine.MAX_BATCH_SIZE} <= set(times.run_s)
    for size, samples in times.run_s.items():
        slept_s = sleeping_engine.BASE_S + size * sleeping_engine.PER_IMAGE_S
        assert min(samples) >= slept_s - 1e-3  # the engine sleeps at least this long
    assert min(times.prepare_s) > 0
    assert min(times.other_s) > 0
