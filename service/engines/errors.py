"""Exceptions of the engines."""


class EngineUnavailableError(Exception):
    """The backend cannot run this package on this machine.

    The message says what is missing and how to provide it.
    """


class EngineBrokenError(Exception):
    """The GPU can do no more work for this process.

    Raised after a sticky CUDA error, for example an illegal address, a failed launch or a lost
    device. Every later run fails as well; only a new process can use the GPU again.
    """
