"""SIGINT (Ctrl-C) and SIGTERM during a build."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Ends a build after the first signal, at a place where that leaves no files behind.

    An exception that a signal handler raises can hit the clean-up, and Python ignores it in some
    places, such as ``__del__``. The handler therefore raises nothing: it ends the child process,
    which is the only long step of a build, and :meth:`check` raises the exception.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._child: BaseProcess | None = None

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Handle the signals of this process during the block, which needs the main thread.

        A signal that the process ignores stays ignored, as SIGINT in background jobs of scripts.
        """
        previous = {
            number: signal.signal(number, self._handle)
            for number in _SIGNALS
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            yield
            self.check()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextmanager
    def child_process(self, process: BaseProcess) -> Iterator[None]:
        """Start a process, and kill it after the block or on a signal.

        It never gets the signals that a terminal sends to its processes: it inherits the mask that
        blocks them. Signals of this process wait until the process can be killed.
        """
        try:
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            try:
                process.start()
                self._child = process
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self.check()
            yield
        finally:
            self._child = None
            if process.pid is not None:
                process.kill()
                process.join()

    def check(self) -> None:
        """Raise ``KeyboardInterrupt`` after SIGINT, and ``SystemExit`` after SIGTERM."""
        if self._received is signal.SIGINT:
            raise KeyboardInterrupt
        if self._received is not None:
            raise SystemExit(128 + self._received)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self._received = self._received or signal.Signals(number)
        if self._child is not None:
            self._child.kill()
