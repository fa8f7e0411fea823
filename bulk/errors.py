"""Errors that end the command."""


class BulkError(Exception):
    """The run cannot start or continue; the message says why and what to do."""
