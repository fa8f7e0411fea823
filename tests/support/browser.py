"""Checks of pages in Chromium, with Playwright."""

from typing import Any

import pytest

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
