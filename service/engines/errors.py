"""Why an engine cannot be opened, or not be used any more."""


class EngineUnavailableError(Exception):
    """This machine or this package cannot run the backend; the text says what is missing."""


class EngineBrokenError(Exception):
    """The engine will not run again in this process; the text says why. Only a restart cures it."""
