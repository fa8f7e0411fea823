"""Take the screenshots of the web page for the README, in Chromium.

python -m docs.generate_page_images http://127.0.0.1:8000 docs
"""

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = "/usr/bin/chromium"
DESKTOP = {"viewport": {"width": 1280, "height": 880}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True}
VIEWS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "light": ("road_0004", DESKTOP),
    "dark": ("blood_smear_1", DESKTOP | {"color_scheme": "dark"}),
    "phone": ("people_1", PHONE),
}
"""The sample and the options of the browser, by the name of the screenshot."""


def main() -> None:
    """Open the page of a service that has the bundled models, and write the screenshots."""
    url, directory = sys.argv[1], Path(sys.argv[2])
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, (sample, options) in VIEWS.items():
            page = browser.new_page(**options)
            page.goto(url)
            show(page, sample)
            with Image.open(io.BytesIO(page.screenshot())) as screenshot:
                screenshot.convert("RGB").save(directory / f"page_{name}.webp", quality=80)
        browser.close()


def show(page: Page, sample: str) -> None:
    """Detect in a sample; on the road, point at the van in the middle."""
    expect(page.locator("#state")).to_have_text("Ready")
    page.locator(f'#samples img[src*="{sample}"]').click()
    expect(page.locator("#summary")).to_contain_text(f"detections in {sample}")
    if sample.startswith("road"):
        page.locator("#viewer").hover(position={"x": 485, "y": 140})
    page.evaluate("document.getElementById('samples').scrollLeft = 0")


if __name__ == "__main__":
    main()
