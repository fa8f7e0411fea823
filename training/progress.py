"""Progress of a training run on standard error."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from command_line.progress import progress_bar

_STATE = "{desc}: {n_fmt}/{total_fmt}, {rate_noinv_fmt}{postfix}"


class TrainingProgress:
    """Epoch, images, loss and time left while a run trains; one line for each finished epoch.

    ``epochs``: those of the whole run, of which ``done`` were trained before.
    """

    def __init__(self, epochs: int, done: int, *, quiet: bool) -> None:
        self._epochs = epochs
        self._first = self._epoch = done
        self._quiet = quiet
        self._started_at = time.monotonic()

    def training_bar(self, images: int) -> "tqdm[Any]":
        """Return the bar of the next epoch; :meth:`describe` gives its ``postfix``."""
        return self._bar("", images)

    def validation_bar(self, images: int) -> "tqdm[Any]":
        """Return the bar of the validation after the current epoch."""
        return self._bar(", validation", images)

    def describe(self, loss: float, share: float) -> str:
        """Return the loss and the time left, when ``share`` of the epoch's images are trained."""
        done = self._epoch - self._first + share
        left_s = (time.monotonic() - self._started_at) / done * (self._epochs - self._first - done)
        return f"loss {loss:.3f}, {tqdm.format_interval(left_s)} left"

    def end_epoch(self, loss: float, entry: Mapping[str, Any]) -> None:
        """Print the line of the current epoch; ``entry``: its line in the log."""
        scores = [
            f"{name.replace('_', ' ')} {entry[name]:.3f}"
            for name in ("ap", "ap50", "validation_loss")
            if name in entry
        ]
        text = ", ".join([f"loss {loss:.3f}", *scores, f"{entry['seconds']} s"])
        if not self._quiet:
            print(f"{self._title}: {text}", file=sys.stderr, flush=True)
        self._epoch += 1

    @property
    def _title(self) -> str:
        return f"epoch {self._epoch + 1}/{self._epochs}"

    def _bar(self, stage: str, images: int) -> "tqdm[Any]":
        return progress_bar(
            quiet=self._quiet,
            desc=self._title + stage,
            total=images,
            unit=" images",
            bar_format=_STATE,
            leave=False,
        )
