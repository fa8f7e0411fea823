"""Why an engine cannot be opened."""


class EngineUnavailableError(Exception):
    """This machine or this package cannot run the backend; the text says what is missing."""
