"""The interface that every backend implements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.engines.precision import ComputePrecision

Images = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]
"""A batch of uint8 RGB images of one size.

Either an array of shape (n, height, width, 3), or n arrays of shape (height, width, 3). An engine
that copies images to a GPU copies the separate arrays straight into its pinned buffer; stacking
them first would cost one more copy.
"""


@dataclass(frozen=True)
class EngineOptions:
    """Settings of the deployment that an engine is opened with."""

    threads: int
    """CPU threads of a run."""
    concurrency: int = 1
    """Concurrent runs on the CPU. GPU engines set their own :attr:`Engine.concurrency`."""
    max_batch_size: int = 8
    """Largest batch that the service will run; GPU engines allocate their buffers for it."""
    precisions: Sequence[ComputePrecision] = ("fp32",)
    """Accepted precisions, in order of preference."""


class Engine(Protocol):
    """A model that is loaded and ready to run.

    Inputs are preprocessed images of the size in the manifest, or of any allowed size if the
    package has ``free_size``. Outputs are the tensors in ``manifest.decoder.outputs()``.
    """

    description: str
    """Library with its version, precision and device, for logs and responses."""
    precision: ComputePrecision
    """Precision of the layers of the network."""
    concurrency: int
    """Number of threads that may call :meth:`run` at the same time.

    Two on a GPU: the copies of one batch overlap the computation of the other.
    """
    max_batch_size: int | None
    """Largest batch that :meth:`run` accepts; None for no limit."""
    is_reference: bool
    """Whether the engine runs the fp32 ONNX files on the CPU, as the export verified them.

    The self-test compares other engines with this reference.
    """

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        """Run one batch and return its outputs by name.

        Every output is a newly allocated array of shape (n, ...) with the dtype that the manifest
        states; its rows are in the order of the images. ``flip`` selects the artifact that also
        runs the horizontally flipped images and averages the two; the manifest says whether the
        package has it.

        Thread-safe for up to :attr:`concurrency` threads. Raises ``ValueError`` if the batch is
        larger than the engine accepts, and
        :class:`~service.engines.errors.EngineBrokenError` if no later run can succeed. After any
        other exception the engine remains usable.
        """
        ...

    def close(self) -> None:
        """Free the memory of the engine; no run may be in progress or follow."""
        ...
