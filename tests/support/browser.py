"""Browsers, and checks of their pages, with Playwright."""

from typing import Any

import pytest

from support.tools import find_tool

CHROMIUM, FIREFOX = "chromium", "firefox"
in_every_browser = pytest.mark.parametrize("browser", [CHROMIUM, FIREFOX], indirect=True)
"""Runs a test, or all tests of a module, in each browser; else they run in Chromium."""

_CHROMIUM_FLAGS = (
    "--no-sandbox",  # it needs privileges that containers do not have
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    # No network: only the service can be reached.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--force-color-profile=srgb",
)
_FIREFOX_PREFERENCES = {
    "media.navigator.streams.fake": True,
    "media.navigator.permission.disabled": True,
}


def launch(playwright: Any, name: str) -> Any:
    """Start a browser of Debian; skip the test if it is not installed."""
    if name == FIREFOX:
        path = find_tool("firefox", "Debian: apt-get install firefox-esr")
        # This channel is the Firefox of Mozilla; the default one is a build of Playwright's own.
        return playwright.firefox.launch(
            channel="moz-firefox",
            executable_path=path,
            firefox_user_prefs=_FIREFOX_PREFERENCES,
        )
    path = find_tool("chromium", "Debian: apt-get install chromium")
    return playwright.chromium.launch(executable_path=path, args=list(_CHROMIUM_FLAGS))


_OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def serious_problems(page: Any) -> list[tuple[str, Any]]:
    """Return the serious and critical accessibility problems that axe-core finds, with places."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    return [
        (one["id"], [node["target"] for node in one["nodes"]])
        for one in found
        if one["impact"] in {"serious", "critical"}
    ]


def sideways_overflow_px(page: Any) -> int:
    """Return by how many pixels the page is wider than its window."""
    return int(page.evaluate(_OVERFLOW))
