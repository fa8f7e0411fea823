"""Optional TensorBoard log of a training run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorBoardUnavailableError(ImportError):
    """The package ``tensorboard`` is not installed."""


class TensorBoardLogger:
    """Writer of event files for ``tensorboard --logdir DIR``."""

    def __init__(self, directory: Path) -> None:
        """Open the log; raises :class:`TensorBoardUnavailableError` without ``tensorboard``."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TensorBoardUnavailableError(
                "--tensorboard needs the package tensorboard: pip install -e '.[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(directory)

    def log(self, epoch: int, entry: Mapping[str, Any]) -> None:
        """Add the numbers of one log entry as scalars; nested ones are tagged ``name/key``."""
        for name, value in entry.items():
            values = value if isinstance(value, Mapping) else {"": value}
            for key, number in values.items():
                tag = f"{name}/{key}" if key else name
                self._writer.add_scalar(tag, number, epoch)
        self._writer.flush()
