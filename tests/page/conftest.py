"""A browser for the tests of a module.

Playwright runs an event loop in the thread of the tests, so it ends with the module.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from support.tools import find_tool

FLAGS = (
    "--no-sandbox",  # it needs privileges that containers do not have
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    # No network: only the service can be reached.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--force-color-profile=srgb",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = find_tool("chromium", "Debian: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield launched
        launched.close()
