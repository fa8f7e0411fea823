"""Admission control: places in the queue, deadlines, target latency."""

import math
import time

import pytest

from service.batching.admission import MAX_RETRY_AFTER_S, Admission
from service.batching.latency_model import LatencyModel
from service.errors import DeadlineUnreachableError, QueueFullError, TooManyInputsError

TENTH_S_PER_INPUT = [(1.0, 0.1), (20.0, 2.0)]


def test_a_request_occupies_its_places_until_it_ends() -> None:
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


def test_never_rejects_a_request_while_no_other_is_admitted() -> None:
    admission = Admission("m", 10, 0.001, LatencyModel(TENTH_S_PER_INPUT))
    with admission.admit(8, time.perf_counter()):
        assert admission.admitted == 8


def test_a_quarter_of_the_places_is_kept_for_requests_of_one_input() -> None:
    admission = Admission("m", 8, None, LatencyModel())
    with pytest.raises(TooManyInputsError, match="needs 7 network inputs"):
        admission.check(7, math.inf)
    with admission.admit(4, math.inf), admission.admit(2, math.inf):
        with pytest.raises(QueueFullError, match="has 6 inputs queued of at most 6"):
            admission.check(2, math.inf)
        admission.check(1, math.inf)


def test_a_request_that_never_fits_is_not_told_to_retry() -> None:
    admission = Admission("m", 3, None, LatencyModel())
    with pytest.raises(TooManyInputsError, match="needs 4 network inputs") as caught:
        admission.check(4, math.inf)
    assert caught.value.status == 413
    assert not caught.value.headers


def test_rejects_an_unreachable_deadline_at_once() -> None:
    admission = Admission("m", 100, None, LatencyModel(TENTH_S_PER_INPUT))
    now = time.perf_counter()
    with admission.admit(10, math.inf):
        admission.check(1, now + 2)
        with pytest.raises(DeadlineUnreachableError, match="about 1100 ms") as caught:
            admission.check(1, now + 0.5)
    assert caught.value.retry_after_s in {1, 2}


def test_the_target_latency_limits_the_queue() -> None:
    admission = Admission("m", 100, 0.55, LatencyModel(TENTH_S_PER_INPUT))
    with admission.admit(4, math.inf):
        admission.check(1, math.inf)
        with pytest.raises(QueueFullError, match="target latency of this service is 550 ms"):
            admission.check(2, math.inf)


def test_retry_after_depends_on_the_queue_and_is_bounded() -> None:
    slow = Admission("m", 10, None, LatencyModel([(1.0, 10.0), (10.0, 100.0)]))
    with slow.admit(8, math.inf):
        with pytest.raises(QueueFullError) as caught:
            slow.check(2, math.inf)
        assert 20 <= int(caught.value.retry_after_s or 0) <= 40
        with pytest.raises(QueueFullError) as caught:
            slow.check(8, math.inf)
        assert caught.value.retry_after_s == MAX_RETRY_AFTER_S


def test_the_latency_model_observes_responses_but_no_failures() -> None:
    latency_model = LatencyModel()
    admission = Admission("m", 100, None, latency_model)
    with pytest.raises(ValueError, match="bad"), admission.admit(1, math.inf):
        raise ValueError("bad image")
    assert latency_model.seconds(1) == 0
    with admission.admit(1, math.inf):
        time.sleep(0.01)
    assert latency_model.seconds(1) >= 0.01
