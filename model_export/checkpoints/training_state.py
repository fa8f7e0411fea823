"""Objects of a training state in checkpoints of MMEngine, which are read as empty objects.

MMEngine pickles its message hub, with a history of each logged value, and NumPy scalars beside the
weights. PyTorch's restricted unpickler refuses a file for each class that it does not know.
"""

from contextlib import AbstractContextManager

import torch

_SKIPPED = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
    # Methods of HistoryBuffer are pickled as calls of getattr. It is not called.
    "builtins.getattr",
)
"""Full names of classes and functions. Any other name is refused as before."""


class SkippedObject:
    """Takes the place of an object, and keeps nothing of it."""

    def __new__(cls, *_: object) -> "SkippedObject":
        """Ignore the arguments."""
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        """Ignore the arguments."""

    def __setstate__(self, _: object) -> None:
        """Ignore the attributes."""


def training_state_skipped() -> AbstractContextManager[None]:
    """Let ``torch.load(weights_only=True)`` make a :class:`SkippedObject` for each of these names.

    The unpickler looks names up in a table, to which this adds entries; nothing is imported.
    """
    return torch.serialization.safe_globals([(SkippedObject, name) for name in _SKIPPED])
