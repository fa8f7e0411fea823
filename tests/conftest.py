"""Fixtures that every test may use."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def project() -> Path:
    """Root of the checkout."""
    return PROJECT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Authors' goldens and labelled pictures that stand beside some checkouts."""
    directory = PROJECT.parent / "shared"
    if not (directory / "upstream").is_dir():
        pytest.skip("the authors' goldens and data are not beside this checkout (../shared)")
    return directory


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Undo what a program that runs in this process does to logging: its stderr is the test's."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.setLevel(level)
    for handler in list(root.handlers):
        if handler not in handlers:
            root.removeHandler(handler)
    for handler in handlers:
        if handler not in root.handlers:
            root.addHandler(handler)
