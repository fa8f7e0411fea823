"""Bytes and duration of the first view of the web page in Chromium.

    python -m benchmarks.page_load

Each load has an empty cache and new connections to a service on the same machine. The first view is
complete when all files, with the images of the samples, are loaded and the page shows that the
service is ready. Needs Chromium and Playwright. Exits 1 above 100 kB or a median of 0.5 s.
"""

import argparse
import statistics
import sys

from playwright.sync_api import Browser, expect, sync_playwright

from benchmarks.endurance.service import run_service
from benchmarks.quartiles import format_quartiles

MAX_BYTES = 100_000
MAX_SECONDS = 0.5
RECORD_STATE = """
new MutationObserver(() => {
    const isReady = document.getElementById("state")?.textContent === "Ready";
    if (isReady) globalThis.readyMs ??= performance.now();
}).observe(document, { subtree: true, childList: true, characterData: true });
"""
"""Milliseconds after the start of the navigation."""
MEASURE = """() => {
    const [navigation] = performance.getEntriesByType("navigation");
    const entries = [navigation, ...performance.getEntriesByType("resource")];
    return {
        files: entries.length,
        bytes: entries.reduce((sum, { transferSize }) => sum + transferSize, 0),
        painted: performance.getEntriesByName("first-contentful-paint")[0].startTime,
        complete: Math.max(navigation.loadEventEnd, globalThis.readyMs),
    };
}"""


def main() -> None:
    """Print the medians and quartiles of all loads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", type=int, default=20)
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="path of the browser")
    args = parser.parse_args()
    with run_service() as service, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        url = f"http://127.0.0.1:{service.port}/"
        load(browser, url)  # starts the processes of the browser
        loads = [load(browser, url) for _ in range(args.loads)]
        version = browser.version
        browser.close()
    sizes = {one["bytes"] for one in loads}
    print(f"Chromium {version}, {args.loads} loads of {loads[0]['files']:.0f} files")
    print(f"bytes with headers: {max(sizes):.0f}, at most {MAX_BYTES} are expected")
    for name, text in (("painted", "first contentful paint"), ("complete", "complete")):
        print(f"{text}: {format_quartiles([one[name] for one in loads], 0)} ms")
    median_s = statistics.median(one["complete"] for one in loads) / 1000
    sys.exit(max(sizes) > MAX_BYTES or median_s > MAX_SECONDS)


def load(browser: Browser, url: str) -> dict[str, float]:
    """Open the page without a cache; return what :data:`MEASURE` returns."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.add_init_script(RECORD_STATE)
    page = context.new_page()
    page.goto(url)  # until the load event
    expect(page.locator("#state")).to_have_text("Ready")
    measured: dict[str, float] = page.evaluate(MEASURE)
    context.close()
    return measured


if __name__ == "__main__":
    main()
