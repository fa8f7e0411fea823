"""Losses and scores as TensorBoard shows them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class CurvesUnavailableError(ImportError):
    """TensorBoard's writer was asked for and is not installed."""


class TensorBoardLogger:
    """Event files for ``tensorboard --logdir DIR``, a curve per number."""

    def __init__(self, directory: Path) -> None:
        """Raises :class:`CurvesUnavailableError` without the package ``tensorboard``."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise CurvesUnavailableError(
                "--tensorboard needs the package tensorboard: pip install -e '.[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(directory)

    def add(self, epoch: int, entry: Mapping[str, Any]) -> None:
        """Add the numbers of one line of the log, and those one level below."""
        for name, value in entry.items():
            values = value if isinstance(value, Mapping) else {"": value}
            for part, number in values.items():
                tag = f"{name}/{part}" if part else name
                self._writer.add_scalar(tag, number, epoch)
        self._writer.flush()
