"""Browsers for the tests of a module.

Playwright runs an event loop in the thread of the tests, so it ends with the module.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from support.browser import CHROMIUM, launch


@pytest.fixture(scope="module")
def playwright_driver() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        yield driver


@pytest.fixture(scope="module")
def browser(playwright_driver: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Chromium, or the browser that the marker ``in_every_browser`` names."""
    launched = launch(playwright_driver, getattr(request, "param", CHROMIUM))
    yield launched
    launched.close()
