"""What goes wrong with engines."""


class EngineUnavailableError(Exception):
    """This machine or this package cannot run the backend; the text says what is missing."""


class EngineBrokenError(Exception):
    """The GPU gave an error after which it does no more work for this process.

    CUDA calls such errors sticky: an illegal address, a failed launch, a lost device. Every later
    run fails as well; only a new process can go on.
    """
