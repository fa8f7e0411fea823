"""Errors of commands whose extra is not installed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def explain_missing_module(program: str, install: str, status: int) -> Iterator[None]:
    """Exit with ``status`` if a module that the block imports is not installed.

    ``install`` follows the name of the module in the message.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        print(f"{program}: error: {error.name} is not installed. {install}", file=sys.stderr)
        sys.exit(status)
