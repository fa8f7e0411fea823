"""Progress on a terminal, in a log, and with ``--quiet``."""

import io
import re
import sys

import pytest
from support.serving import wait_until

from command_line import progress
from command_line.progress import COUNT, PERCENTAGE, Steps, print_line, progress_bar


class Terminal(io.StringIO):
    """A stream that is a terminal of 60 columns."""

    def isatty(self) -> bool:
        return True

    @property
    def states(self) -> list[str]:
        """What the last line showed, one after the other."""
        return [state.rstrip() for state in re.split(r"[\r\n]", self.getvalue()) if state.strip()]


def use_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Replace standard error; not in a fixture, after which pytest sets it again."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "60")
    return stream


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.01)
    monkeypatch.setattr(progress, "_REDRAW_INTERVAL_S", 0.01)


def test_a_log_has_a_line_for_the_start_and_the_end_of_a_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    steps = Steps(2)
    steps.begin("Read {file}")
    steps.begin("Detect", COUNT, 3)
    for _ in range(3):
        steps.advance()
    steps.end("failed")
    steps.end()  # there is no step to end
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "[1/2] Read {file} ..."
    assert re.fullmatch(r"\[1/2\] Read \{file\} \.\.\. \d+\.\d s", lines[1])
    assert lines[2:] == ["[2/2] Detect ...", "[2/2] Detect ... failed"]


@pytest.mark.usefixtures("often")
def test_a_step_that_reports_nothing_shows_that_it_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    steps, lines = Steps(1), []
    steps.begin("Build", PERCENTAGE, 1)
    steps.advance(0.25)

    def is_shown() -> bool:
        lines.extend(capsys.readouterr().err.splitlines())
        return len(lines) > 3

    wait_until(is_shown)
    steps.end()
    assert re.fullmatch(r"\[1/1\] Build \.\.\. 25 %, 00:\d\d", lines[-1])


@pytest.mark.usefixtures("often")
def test_a_terminal_shows_the_state_of_a_step_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = use_terminal(monkeypatch)
    steps = Steps(1)
    steps.begin("Detect with a model of a very long name", COUNT, 4)
    for _ in range(4):
        steps.advance()
    wait_until(lambda: "4/4" in terminal.getvalue())
    steps.end()
    assert terminal.getvalue().count("\n") == 1
    assert max(map(len, terminal.states)) < 60
    assert re.fullmatch(r"\[1/1\] Detect wit \.\.\. \d+\.\d s", terminal.states[-1])
    running = next(state for state in terminal.states if "4/4" in state)
    assert re.search(r" \.\.\. 4/4, .*images/s, 00:00 left", running)


def test_a_bar_writes_lines_into_a_log_at_intervals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in progress_bar(iterable=range(100), desc="detect", unit=" images"):
        pass
    assert capsys.readouterr().err == "", "it took less than the interval"
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 1e-9)
    for _ in progress_bar(iterable=range(100), desc="detect", unit=" images"):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 1
    assert re.fullmatch(r"detect: 100/100, .* images/s, 00:00 left", lines[-1])


def test_lines_of_the_output_are_printed_above_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = use_terminal(monkeypatch)
    with progress_bar(total=2, desc="tune", leave=False):
        print_line("a row")
    assert capsys.readouterr().out == "a row\n"
    assert terminal.states[0].startswith("tune:   0%|")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_quiet_prints_nothing(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, often: None
) -> None:
    del often
    stream = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    steps = Steps(1, quiet=True)
    steps.begin("Detect", COUNT, 2)
    steps.advance()
    steps.end()
    for _ in progress_bar(iterable=range(3), quiet=True):
        pass
    assert stream.getvalue() == ""
