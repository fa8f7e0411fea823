"""Progress on standard error: numbered steps with their durations, and bars of counted items.

On a terminal, the last line is updated in place. Elsewhere, such as in the log of a container,
complete lines are written: at the start and end of a step, and every :data:`LINE_INTERVAL_S`
seconds of a step or a bar.
"""

import argparse
import shutil
import sys
import threading
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

LINE_INTERVAL_S = 10.0
_REDRAW_INTERVAL_S = 1.0

ELAPSED = "{elapsed}"
COUNT = "{n_fmt}/{total_fmt}, {rate_noinv_fmt}, {remaining} left"
TIME_LEFT = "{n_fmt}/{total_fmt}, {remaining} left"
PERCENTAGE = "{percentage:.0f} %, {elapsed}"
"""States of a step, with the fields of ``bar_format`` of ``tqdm``."""
_STATE_COLUMNS: Mapping[str, int] = {ELAPSED: 20, COUNT: 44, TIME_LEFT: 30, PERCENTAGE: 20}
"""Columns of the terminal that the title of a step leaves for each state."""


def add_quiet_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--quiet``, for scripts."""
    parser.add_argument("--quiet", action="store_true", help="print no progress")


def progress_bar(*, quiet: bool = False, **options: Any) -> "tqdm[Any]":
    """Return a ``tqdm`` bar on standard error; ``options`` are those of ``tqdm``."""
    if sys.stderr.isatty():
        return tqdm(file=sys.stderr, disable=quiet, dynamic_ncols=True, **options)
    lines = {
        "bar_format": f"{{desc}}: {COUNT}",
        "mininterval": LINE_INTERVAL_S,
        "delay": LINE_INTERVAL_S,
    }
    return tqdm(file=_LineFile(), disable=quiet, **(lines | options))


def print_line(text: str) -> None:
    """Print to standard output, above the bar that the terminal may show."""
    tqdm.write(text)


class _LineFile:
    """Standard error as a file of ``tqdm``: each state becomes a line."""

    def write(self, text: str) -> None:
        if state := text.strip():
            sys.stderr.write(f"{state}\n")

    def flush(self) -> None:
        sys.stderr.flush()


class Steps:
    """Numbered steps of a command, such as ``[2/4] Export to ONNX ... 3.2 s``.

    ``total``: the number of steps, which may be changed.
    """

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        self.total = total
        self._number = 0
        self._quiet = quiet
        self._step: _Step | None = None

    def begin(self, step: str, state: str = ELAPSED, items: int | None = None) -> None:
        """End the current step and begin the next one.

        ``state`` follows the title while the step runs: :data:`ELAPSED`, or :data:`COUNT` (of
        images), :data:`TIME_LEFT` or :data:`PERCENTAGE` of ``items``.
        """
        self.end()
        self._number += 1
        title = f"[{self._number}/{self.total}] {step}"
        self._step = _Step(title, state, items, quiet=self._quiet)

    def advance(self, items: float = 1) -> None:
        """Count further items of the current step."""
        assert self._step is not None
        self._step.bar.update(items)

    def end(self, outcome: str = "{elapsed_s:.1f} s") -> None:
        """End the current step, if there is one, with its outcome: by default its duration."""
        if self._step is not None:
            self._step.end(outcome)
        self._step = None


class _Step:
    """A step that runs, and a thread that shows its state also while no items are counted."""

    def __init__(self, title: str, state: str, items: int | None, *, quiet: bool) -> None:
        is_terminal = sys.stderr.isatty()
        if is_terminal:  # a line that is wrapped could not be updated
            columns = shutil.get_terminal_size().columns - _STATE_COLUMNS[state]
            title = title[: max(0, columns)].rstrip()
        options = {"total": items, "unit": " images", "bar_format": "{desc}", "delay": 0}
        self.bar = progress_bar(quiet=quiet, desc=f"{title} ...", **options)
        self.bar.bar_format = f"{{desc}} {state}"
        self._interval_s = _REDRAW_INTERVAL_S if is_terminal else LINE_INTERVAL_S
        self._is_ended = threading.Event()
        self._thread = threading.Thread(target=self._redraw, daemon=True)
        self._thread.start()

    def _redraw(self) -> None:
        while not self._is_ended.wait(self._interval_s):
            self.bar.refresh()

    def end(self, outcome: str) -> None:
        self._is_ended.set()
        self._thread.join()
        self.bar.bar_format = f"{{desc}} {outcome}"
        self.bar.close()
