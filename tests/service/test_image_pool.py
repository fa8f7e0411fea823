"""The pool that decodes images: order, memory budget, deadlines, cancellation, stuck tasks."""

import gc
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from support.images import encode, plain
from support.serving import ColourEngine, RunningServer, wait_until

from service import image_pool
from service.batching.types import PRIORITY_OFFSETS_S, SchedulingOptions
from service.detector import Detector
from service.errors import (
    DeadlineExceededError,
    DeadlineUnreachableError,
    ImageSizeError,
    StoppingError,
)
from service.image_pool import CHEAP_S, NO_COST, ImagePool
from service.imaging.types import DecodingCost

NORMAL = SchedulingOptions()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def no_cheap_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No task counts as cheap, so that a pool of one thread runs one task at a time."""
    monkeypatch.setattr(image_pool, "CHEAP_S", -1.0)


def occupy(pool: ImagePool, gate: threading.Event, cost: DecodingCost) -> "Future[bool]":
    """Start a task that runs until the gate is open."""
    started = threading.Event()

    def run() -> bool:
        started.set()
        return gate.wait(10)

    future = pool.submit(run, NORMAL, cost)
    assert started.wait(10)
    return future


class Clock:
    """The clock of the pool; it moves only when a test sets it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(image_pool, "time", SimpleNamespace(perf_counter=clock))
    return clock


def wait_ms(pool: ImagePool, clock: Clock, cost: DecodingCost) -> int:
    """Return the expected wait for which a task that must begin now is rejected."""
    with pytest.raises(DeadlineUnreachableError) as info:
        pool.submit(lambda: None, SchedulingOptions(clock.now), cost)
    match = re.search(r"about (\d+) ms to decode", info.value.detail)
    assert match is not None
    return int(match[1])


def observe_ratio(pool: ImagePool, clock: Clock, ratio: float) -> None:
    """Run a task with a stated time of 1 s for ``ratio`` seconds."""

    def run() -> None:
        clock.now += ratio

    pool.submit(run, NORMAL, DecodingCost(0, 1.0)).result(10)
    wait_until(lambda: not pool._running)


@pytest.mark.usefixtures("no_cheap_tasks")
def test_cheap_images_are_decoded_first_and_expensive_ones_are_not_starved(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_pool, "COST_WEIGHT", 1.0)
    pool, order = ImagePool(1), list[str]()
    occupy(pool, gate, DecodingCost(0, 0))
    now = time.perf_counter()
    clock = iter([now, now, now + 5, now + 1])
    monkeypatch.setattr(image_pool.time, "perf_counter", lambda: next(clock, now + 9))
    futures = [
        pool.submit(lambda name=name: order.append(name), NORMAL, DecodingCost(0, cpu_s))  # type: ignore[misc]
        for name, cpu_s in (("expensive", 3), ("cheap", 0.1), ("late", 0.1), ("cheaper", 0.0))
    ]
    gate.set()
    for future in futures:
        future.result(10)
    assert order == ["cheap", "cheaper", "expensive", "late"]
    pool.close()


@pytest.mark.usefixtures("no_cheap_tasks")
def test_priorities_apply(gate: threading.Event) -> None:
    pool, order = ImagePool(1), list[str]()
    occupy(pool, gate, DecodingCost(0, 0))
    futures = [
        pool.submit(
            lambda name=name: order.append(name),  # type: ignore[misc]
            SchedulingOptions(priority_offset_s=PRIORITY_OFFSETS_S[name]),
        )
        for name in ("low", "normal", "high")
    ]
    gate.set()
    for future in futures:
        future.result(10)
    assert order == ["high", "normal", "low"]
    pool.close()


def test_cheap_images_do_not_wait_for_expensive_ones_that_are_being_decoded(
    gate: threading.Event, clock: Clock
) -> None:
    pool = ImagePool(3)
    observe_ratio(pool, clock, 1.0)
    expensive, cheap = DecodingCost(0, 8.0), DecodingCost(0, CHEAP_S)
    occupy(pool, gate, expensive)
    occupy(pool, gate, expensive)
    assert wait_ms(pool, clock, expensive) == 8000
    occupy(pool, gate, cheap)
    assert wait_ms(pool, clock, cheap) == 250
    pool.close()


def test_cheap_images_do_not_wait_for_expensive_ones_that_arrived_much_earlier(
    gate: threading.Event, clock: Clock
) -> None:
    pool = ImagePool(1)
    observe_ratio(pool, clock, 1.0)
    expensive = DecodingCost(0, 8.0)
    occupy(pool, gate, expensive)
    pool.submit(lambda: None, NORMAL, expensive)
    clock.now += 1000  # the expensive one is now the first of the queue
    cheap = SchedulingOptions(clock.now, priority_offset_s=-1)
    pool.submit(lambda: None, cheap, DecodingCost(0, CHEAP_S)).result(10)
    assert pool.depth == 1
    pool.close()


def test_cheap_images_do_not_delay_expensive_ones_for_ever(clock: Clock) -> None:
    pool, order = ImagePool(1), list[str]()
    gates = threading.Event(), threading.Event()
    for gate in gates:
        occupy(pool, gate, DecodingCost(0, CHEAP_S))
    expensive = pool.submit(lambda: order.append("expensive"), NORMAL, DecodingCost(0, 8.0))
    clock.now += 1000
    cheap = pool.submit(lambda: order.append("cheap"), NORMAL, DecodingCost(0, CHEAP_S))
    gates[0].set()
    expensive.result(10)
    cheap.result(10)
    assert order == ["expensive", "cheap"]
    gates[1].set()
    pool.close()


@pytest.mark.usefixtures("no_cheap_tasks")
def test_the_expected_wait_does_not_count_tasks_that_will_be_late(
    gate: threading.Event, clock: Clock
) -> None:
    pool = ImagePool(1)
    observe_ratio(pool, clock, 1.0)
    occupy(pool, gate, DecodingCost(0, 8))
    pool.submit(lambda: None, SchedulingOptions(clock.now + 9), DecodingCost(0, 2))
    pool.submit(lambda: None, SchedulingOptions(clock.now + 11), DecodingCost(0, 2))
    assert wait_ms(pool, clock, DecodingCost(0, 2)) == 12_000
    clock.now += 7.5
    pool.submit(lambda: None, SchedulingOptions(priority_offset_s=9), DecodingCost(0, 2))
    # The task that must begin within 9 s would begin after 10 s.
    assert wait_ms(pool, clock, DecodingCost(0, 2)) == 4500
    pool.close()


def test_running_tasks_stay_within_the_memory_budget(gate: threading.Event) -> None:
    pool = ImagePool(4, memory_bytes=100)
    first = occupy(pool, gate, DecodingCost(60, 0))
    running = threading.Event()
    second = pool.submit(running.set, NORMAL, DecodingCost(41, 0))
    assert not running.wait(0.2)
    assert pool.held_bytes == 60
    fitting = pool.submit(lambda: pool.held_bytes, SchedulingOptions(priority_offset_s=9))
    assert fitting.result(10) == 60
    gate.set()
    first.result(10)
    second.result(10)
    wait_until(lambda: pool.held_bytes == 0)
    pool.close()


def test_an_image_above_the_whole_budget_is_refused() -> None:
    pool = ImagePool(1, memory_bytes=100)
    with pytest.raises(ImageSizeError, match="could take 101 bytes of memory; at most 100"):
        pool.submit(lambda: None, NORMAL, DecodingCost(101, 0))
    pool.close()


@pytest.mark.usefixtures("no_cheap_tasks")
def test_the_expected_wait_counts_running_tasks_and_those_before(
    gate: threading.Event, clock: Clock
) -> None:
    pool = ImagePool(3)
    observe_ratio(pool, clock, 0.5)
    occupy(pool, gate, DecodingCost(0, 8))
    occupy(pool, gate, DecodingCost(0, 20))
    assert wait_ms(pool, clock, DecodingCost(0, 8)) == 4000
    clock.now += 3
    assert wait_ms(pool, clock, DecodingCost(0, 8)) == 1000
    pool.submit(lambda: None, NORMAL, DecodingCost(0, 4))
    assert wait_ms(pool, clock, DecodingCost(0, 8)) == 3000
    assert wait_ms(pool, clock, DecodingCost(0, 1)) == 1000
    clock.now += 100  # longer than expected: they may end at any time
    pool.submit(lambda: None, SchedulingOptions(clock.now), DecodingCost(0, 1))
    pool.close()


def test_no_wait_is_expected_while_a_thread_is_idle(gate: threading.Event, clock: Clock) -> None:
    pool = ImagePool(3)
    observe_ratio(pool, clock, 0.5)
    occupy(pool, gate, DecodingCost(0, 8))
    pool.submit(lambda: None, SchedulingOptions(clock.now), DecodingCost(0, 8)).result(10)
    pool.close()


def test_the_expected_wait_counts_memory(gate: threading.Event, clock: Clock) -> None:
    pool = ImagePool(4, memory_bytes=100)
    observe_ratio(pool, clock, 1.0)
    occupy(pool, gate, DecodingCost(60, 5))
    occupy(pool, gate, DecodingCost(20, 7))
    assert wait_ms(pool, clock, DecodingCost(30, 9)) == 5000
    assert wait_ms(pool, clock, DecodingCost(90, 9)) == 7000
    pool.submit(lambda: None, NORMAL, DecodingCost(90, 1))
    # It would fit now, but one that waits for memory is before it.
    assert wait_ms(pool, clock, DecodingCost(20, 9)) == 8000
    pool.close()


@pytest.mark.usefixtures("no_cheap_tasks")
def test_an_unreachable_deadline_is_refused_while_nothing_is_queued(
    gate: threading.Event, clock: Clock
) -> None:
    pool = ImagePool(1)
    observe_ratio(pool, clock, 0.5)
    occupy(pool, gate, DecodingCost(0, 8))
    with pytest.raises(DeadlineUnreachableError, match=r"about 4000 ms .* 3000 ms") as info:
        pool.submit(lambda: None, SchedulingOptions(clock.now + 3))
    assert info.value.retry_after_s == 4
    pool.submit(lambda: None, SchedulingOptions(clock.now + 5))
    pool.close()


@pytest.mark.usefixtures("no_cheap_tasks")
def test_a_task_whose_deadline_passed_in_the_queue_does_not_run(
    gate: threading.Event, clock: Clock
) -> None:
    pool, ran = ImagePool(1), list[str]()
    occupy(pool, gate, NO_COST)
    late = pool.submit(lambda: ran.append("late"), SchedulingOptions(clock.now + 1))
    in_time = pool.submit(lambda: ran.append("in time"), SchedulingOptions(clock.now + 3))
    clock.now += 2
    gate.set()
    in_time.result(10)
    assert isinstance(late.exception(10), DeadlineExceededError)
    assert ran == ["in time"]
    pool.close()


@pytest.mark.usefixtures("no_cheap_tasks")
def test_a_cancelled_task_leaves_the_queue_and_is_freed(gate: threading.Event) -> None:
    class Image:
        pass

    pool = ImagePool(1)
    occupy(pool, gate, DecodingCost(0, 0))
    image = Image()
    gone = weakref.ref(image)

    def use(image: Image = image) -> None:
        raise AssertionError(f"a cancelled task ran with {image}")

    gc.disable()
    try:
        future = pool.submit(use, NORMAL)
        del image, use
        assert future.cancel()
        del future
        assert gone() is None
        assert pool.oldest_age_s == 0
    finally:
        gc.enable()
    pool.close()


def test_a_closed_pool_accepts_no_task() -> None:
    pool = ImagePool(1)
    pool.close()
    with pytest.raises(StoppingError):
        pool.submit(lambda: None, NORMAL)


def test_exceptions_reach_the_caller() -> None:
    def fail() -> None:
        raise ValueError("bad image")

    pool = ImagePool(1)
    with pytest.raises(ValueError, match="bad image"):
        pool.submit(fail, NORMAL, DecodingCost(7, 0)).result(10)
    wait_until(lambda: pool.held_bytes == 0)
    pool.close()


def test_a_stuck_task_fails_the_probes(
    start_server: Callable[..., RunningServer],
    gate: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = start_server(ColourEngine(), image_threads=1)
    assert running.client.get("/livez").status_code == 200
    monkeypatch.setattr("service.batching.types.STUCK_AFTER_S", 0.0)
    monkeypatch.setattr("service.batching.types.STUCK_FACTOR", 0.0)
    started = threading.Event()

    def decode(*_: object) -> None:
        started.set()
        gate.wait(10)
        raise ValueError("not decoded")

    monkeypatch.setattr("service.detector.Detector.preprocess", decode)
    poster = threading.Thread(
        target=running.client.post, args=("/detect",), kwargs={"content": encode(plain(9, 9))}
    )
    poster.start()
    assert started.wait(10)
    time.sleep(0.01)
    for probe in ("/livez", "/readyz"):
        response = running.client.get(probe)
        assert response.status_code == 503
        assert "decoding an image began" in response.json()["detail"]
    gate.set()
    poster.join(10)


@pytest.mark.usefixtures("no_cheap_tasks")
def test_a_cheap_image_passes_expensive_ones_over_http(
    start_server: Callable[..., RunningServer],
    gate: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = start_server(ColourEngine(), image_threads=1)
    order: list[int] = []
    preprocess = Detector.preprocess

    def admitted() -> float:
        return running.metric("centernet_queue_inputs", model="painted")

    def gated(self: Detector, opened: object, options: object) -> object:
        gate.wait(10)
        order.append(opened.width_px)  # type: ignore[attr-defined]
        return preprocess(self, opened, options)  # type: ignore[arg-type]

    monkeypatch.setattr(Detector, "preprocess", gated)
    large, small = encode(plain(1, 2, size=(2000, 2000))), encode(plain(1, 2))
    posters = []
    for count, body in enumerate((large, large, large, small), start=1):
        posters.append(
            threading.Thread(
                target=running.client.post, args=("/detect",), kwargs={"content": body}
            )
        )
        posters[-1].start()
        wait_until(lambda count=count: admitted() == count)  # type: ignore[misc]
    wait_until(lambda: running.metric("centernet_decode_queue_images") == 3)
    assert running.metric("centernet_decode_queue_oldest_age_seconds") > 0
    gate.set()
    for poster in posters:
        poster.join(10)
    assert order == [2000, 64, 2000, 2000]
