"""Generated hostile inputs of every kind stay within the bounds of benchmarks.hostile_inputs."""

import pickle
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.hostile_inputs import campaign, checkpoints
from benchmarks.hostile_inputs.__main__ import KINDS
from benchmarks.hostile_inputs.bounds import (
    CPU_S,
    EVENT_LOOP_S,
    MEMORY_BYTES,
    Measurement,
    Reading,
    measure,
)
from benchmarks.hostile_inputs.campaign import Campaign, input_of
from benchmarks.hostile_inputs.readers import kind_of
from benchmarks.hostile_inputs.request_kinds import REQUESTS

CASES = 2_500
MIN_SHARE = 0.01


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_input_exceeds_the_bounds(kind: str, tmp_path: Path) -> None:
    count = CASES // len(KINDS)
    summary = Campaign(kind, range(count), 0, tmp_path).run(1)
    assert not summary.failures
    assert summary.outcomes.total() == count
    # Inputs that are all accepted, or all refused, would test only one path.
    accepted = summary.outcomes["200" if kind in REQUESTS else "accepted"]
    assert count * MIN_SHARE < accepted < count * (1 - MIN_SHARE), summary.outcomes


def test_a_checkpoint_that_is_executed_is_reported() -> None:
    reader = kind_of("checkpoint").read
    reader(b"")
    pickle.loads(b"cbenchmarks.hostile_inputs.checkpoints\nrecord_call\n(K\x01tR.")
    try:
        with pytest.raises(AssertionError, match=r"the checkpoint was executed: \[\(1,\)\]"):
            reader(b"")
    finally:
        checkpoints.calls.clear()


def test_inputs_are_reproducible() -> None:
    for kind in KINDS:
        assert input_of(kind, 0, 3) == input_of(kind, 0, 3)
        assert input_of(kind, 0, 3) != input_of(kind, 1, 3)


def test_memory_and_cpu_time_beside_the_stated_ones_are_measured() -> None:
    def read(_: bytes) -> Reading:
        pixels = np.ones(300_000_000, np.uint8)
        until = time.process_time() + 0.1
        while time.process_time() < until:
            pass
        return Reading("accepted", stated_memory_bytes=int(pixels[0]) * 10_000_000)

    measured = measure(read, b"")
    assert 280e6 < measured.memory_bytes < 320e6
    assert measured.cpu_s >= 0.1
    assert "MB" in (measured.violation or "")


@pytest.mark.parametrize(
    ("cpu_s", "memory_bytes", "event_loop_s", "text"),
    [
        (CPU_S * 2, 0, 0, "4.0 CPU seconds"),
        (0, MEMORY_BYTES * 2, 0, "512 MB"),
        (0, 0, EVENT_LOOP_S * 2, "100 ms in the event loop"),
    ],
)
def test_violations(cpu_s: float, memory_bytes: float, event_loop_s: float, text: str) -> None:
    assert text in str(Measurement("200", cpu_s, memory_bytes, event_loop_s).violation)
    assert Measurement("200", 0, 0, 0).violation is None


def test_inputs_that_a_process_does_not_read_are_reported_and_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "_SILENCE_S", 0.0)
    summary = Campaign("manifest", range(2), 0, tmp_path).run(1)
    assert [failure.partition(":")[0] for failure in summary.failures] == [
        "manifest-0-0",
        "manifest-0-1",
    ]
    assert (tmp_path / "manifest-0-1").read_bytes() == input_of("manifest", 0, 1)
