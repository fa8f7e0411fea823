"""Who may enter."""

import math
import time

import pytest

from service.batching.admission import MAX_RETRY_AFTER_S, Admission
from service.batching.latency_model import LatencyModel
from service.errors import DeadlineUnreachableError, QueueFullError

TENTH_EACH = [(1.0, 0.1), (20.0, 2.0)]


def test_places_are_taken_and_given_back() -> None:
    admission = Admission("m", 3, None, LatencyModel())
    with admission.admit(2, math.inf):
        assert admission.admitted == 2
        with (
            pytest.raises(QueueFullError, match="has 2 inputs queued of at most 3"),
            admission.admit(2, math.inf),
        ):
            pass
        with admission.admit(1, math.inf):
            assert admission.admitted == 3
    assert admission.admitted == 0


def test_one_alone_is_never_refused() -> None:
    admission = Admission("m", 3, 0.001, LatencyModel(TENTH_EACH))
    with admission.admit(10, time.perf_counter()):
        assert admission.admitted == 10


def test_a_deadline_that_the_queue_does_not_allow_is_refused_at_once() -> None:
    admission = Admission("m", 100, None, LatencyModel(TENTH_EACH))
    now = time.perf_counter()
    with admission.admit(10, math.inf):
        admission.check(1, now + 2)
        with pytest.raises(DeadlineUnreachableError, match="about 1100 ms") as refused:
            admission.check(1, now + 0.5)
    assert refused.value.retry_after_s in {1, 2}


def test_the_target_bounds_the_queue() -> None:
    admission = Admission("m", 100, 0.55, LatencyModel(TENTH_EACH))
    with admission.admit(4, math.inf):
        admission.check(1, math.inf)
        with pytest.raises(QueueFullError, match="target latency of this service is 550 ms"):
            admission.check(2, math.inf)


def test_the_time_to_wait_follows_from_the_queue_and_is_bounded() -> None:
    slow = Admission("m", 10, None, LatencyModel([(1.0, 5.0), (10.0, 50.0)]))
    with slow.admit(10, math.inf):
        with pytest.raises(QueueFullError) as refused:
            slow.check(2, math.inf)
        assert 10 <= int(refused.value.retry_after_s or 0) <= 20
        with pytest.raises(QueueFullError) as refused:
            slow.check(90, math.inf)
        assert refused.value.retry_after_s == MAX_RETRY_AFTER_S


def test_what_answers_take_is_learned_and_failures_teach_nothing() -> None:
    estimate = LatencyModel()
    admission = Admission("m", 100, None, estimate)
    with pytest.raises(ValueError, match="bad"), admission.admit(1, math.inf):
        raise ValueError("bad image")
    assert estimate.seconds(1) == 0
    with admission.admit(1, math.inf):
        time.sleep(0.01)
    assert estimate.seconds(1) >= 0.01
