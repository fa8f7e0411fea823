"""Signals of a process that builds engines; ``test_build_cli.py`` sends them to real builds."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from model_export.engines.interruption import Interruption


@contextmanager
def handler(number: signal.Signals, action: Any) -> Iterator[None]:
    previous = signal.signal(number, action)
    try:
        yield
    finally:
        signal.signal(number, previous)


@pytest.mark.parametrize(
    ("number", "exception", "status"),
    [(signal.SIGINT, KeyboardInterrupt, None), (signal.SIGTERM, SystemExit, 143)],
)
def test_a_signal_raises_only_where_it_is_checked(
    number: signal.Signals, exception: type[BaseException], status: int | None
) -> None:
    steps: list[str] = []

    def build() -> None:
        interruption = Interruption()
        with interruption.handle_signals():
            interruption.check()
            os.kill(os.getpid(), number)
            steps.append("clean up")
            interruption.check()
            steps.append("continue")

    with pytest.raises(exception) as raised:
        build()
    assert steps == ["clean up"]
    assert getattr(raised.value, "code", None) == status


def test_a_signal_after_the_last_check_raises_at_the_end() -> None:
    with pytest.raises(KeyboardInterrupt), Interruption().handle_signals():
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interruption().handle_signals():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_signal_that_the_process_ignores_stays_ignored() -> None:
    """As SIGINT in background jobs of shell scripts."""
    with handler(signal.SIGINT, signal.SIG_IGN), Interruption().handle_signals():
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
