"""Fixtures that every test may use."""

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
