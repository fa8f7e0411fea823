"""Runs of perf_analyzer, and its results."""

import csv
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_WINDOWS = 3
"""Measurement windows of a run, which reports all of them together."""
_ANY_DEVIATION_PERCENT = 1000
"""The rounds show how stable the results are; further windows are not needed."""
_TIMEOUT_S = 300.0


class Measured(NamedTuple):
    """Result of one run."""

    concurrency: int
    images_per_s: float
    p50_ms: float
    p99_ms: float


class PerfAnalyzer:
    """The command ``perf_analyzer``; each run takes about ``seconds``."""

    def __init__(self, command: Sequence[str], folder: Path, seconds: float) -> None:
        self._command = command
        self._report = folder / "perf_analyzer.csv"
        self._window_ms = round(1000 * seconds / _WINDOWS)

    def run(self, model: str, port: int, concurrency: int) -> Measured:
        """Send requests for single images; raises ``RuntimeError`` with its output if it fails."""
        self._report.unlink(missing_ok=True)
        command = [
            *(*self._command, "-m", model, "-u", f"127.0.0.1:{port}", "-i", "http"),
            *("--concurrency-range", str(concurrency), "-f", str(self._report)),
            *("--measurement-interval", str(self._window_ms), "--max-trials", str(_WINDOWS)),
            *("--stability-percentage", str(_ANY_DEVIATION_PERCENT)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
        if done.returncode or not self._report.exists():
            raise RuntimeError(f"{' '.join(command)}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
        return read_report(self._report.read_text())


def read_report(text: str) -> Measured:
    """Return the result in the CSV file of a run with one concurrency."""
    (row,) = csv.DictReader(text.splitlines())
    return Measured(
        int(row["Concurrency"]),
        float(row["Inferences/Second"]),
        float(row["p50 latency"]) / 1000,
        float(row["p99 latency"]) / 1000,
    )
