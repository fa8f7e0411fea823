"""Errors that end the command."""


class CommandError(Exception):
    """The command cannot start or continue; the message says why and what to do."""
