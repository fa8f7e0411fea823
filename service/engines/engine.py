"""What the service asks of an engine, and what an engine may ask of the service."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]
"""uint8 RGB of one size: an array (n, height, width, 3), or n arrays (height, width, 3), which an
engine with buffers of its own copies only once."""


@dataclass(frozen=True)
class EngineOptions:
    """Deployment facts that an engine is opened with."""

    threads: int
    """Threads of one run on the CPU."""
    concurrency: int = 1
    """Runs at a time on the CPU; a GPU has its own number."""
    max_batch_size: int = 8
    """Most images that the service will ever put into one run."""


class Engine(Protocol):
    """One loaded model."""

    description: str
    concurrency: int
    """Threads that may be inside :meth:`run` at a time: one batch's copies can then overlap the
    computation of another."""
    max_batch_size: int | None
    """Most images of one run; None: any number."""
    is_reference: bool
    """Whether it runs the fp32 ONNX files on the CPU, which is what the export has verified."""

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        """Run one batch; every output is a new array with n rows in the order of the images.

        ``flip`` takes the artifact that averages over the flipped images, of which the manifest
        says whether the package has it. Raises :class:`EngineBrokenError` when no later run can
        succeed; after any other exception the engine can go on.
        """
        ...

    def close(self) -> None:
        """Free memory and devices; no run may be under way or follow."""
        ...
