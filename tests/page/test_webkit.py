"""The web page in WebKitGTK, whose engine is that of Safari, with the bundled models."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.serving import RunningServer, run_server
from support.tools import find_tool

from service.model_registry import load_models
from service.settings import Settings

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
By = pytest.importorskip("selenium.webdriver.common.by").By
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait

pytestmark = [
    pytest.mark.slow,
    # Of selenium's own code.
    pytest.mark.filterwarnings("ignore:setting remote_server_addr:DeprecationWarning"),
]

WAIT_S = 30
SAMPLES = {
    "blood_cells": "blood_smear_1",
    "people": "people_1",
    "road_vehicles": "road_0002",
}


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    """A display without a screen."""
    xvfb = find_tool("Xvfb", "Debian: apt-get install xvfb")
    command = [xvfb, "-displayfd", "1", "-screen", "0", "1400x1000x24"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f":{process.stdout.readline().strip()}"
        process.terminate()


@pytest.fixture(scope="module")
def service(project: Path) -> Iterator[RunningServer]:
    settings = Settings(models=project / "models", default_model="blood_cells", max_batch_size=4)
    with run_server(lambda *given: load_models(*given, print), settings) as running:
        yield running


class Tab:
    """The page in the browser."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def find(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def wait_for_text(self, selector: str, pattern: str) -> str:
        def read(_: Any) -> str | None:
            text = str(self.find(selector).text)
            return text if re.search(pattern, text) else None

        wait = WebDriverWait(self.driver, WAIT_S)
        text: str = wait.until(read, f"{selector} has no {pattern}")
        return text

    def rows(self) -> list[list[str]]:
        """Return class and score of each detection in the table."""
        script = "return [...document.querySelectorAll('#detections tbody tr')].map("
        script += "(row) => [row.cells[0].innerText.trim(), row.cells[1].innerText])"
        rows: list[list[str]] = self.driver.execute_script(script)
        return rows


RECORD_ERRORS = """
globalThis.errors = [];
addEventListener("error", (event) => errors.push(String(event.message)));
addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
document.addEventListener("securitypolicyviolation",
    (event) => errors.push(`${event.violatedDirective} ${event.blockedURI}`));
"""


@pytest.fixture
def tab(service: RunningServer, display: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tab]:
    """The page in MiniBrowser; afterwards, nothing may have gone wrong in it."""
    program = find_tool("WebKitWebDriver", "Debian: apt-get install webkit2gtk-driver")
    monkeypatch.setenv("DISPLAY", display)
    driver = webdriver.WebKitGTK(service=webdriver.webkitgtk.service.Service(program))
    try:
        driver.set_window_size(1280, 900)
        driver.get(service.url)
        driver.execute_script(RECORD_ERRORS)
        opened = Tab(driver)
        opened.wait_for_text("#state", "Ready")
        yield opened
        assert driver.execute_script("return errors") == []
    finally:
        driver.quit()


def detections(service: RunningServer, image: Path, model: str, **query: Any) -> list[list[str]]:
    """Return class and score of each detection that the service returns."""
    response = service.client.post(
        f"/models/{model}/detect", content=image.read_bytes(), params=query
    )
    return [[one["class_name"], f"{one['score']:.3f}"] for one in response.json()["detections"]]


def test_the_page_in_webkit(
    tab: Tab, service: RunningServer, project: Path, tmp_path: Path
) -> None:
    page = project / "service/http/page"
    for model, name in SAMPLES.items():
        tab.find(f'#samples img[src*="{name}"]').click()
        tab.wait_for_text("#summary", rf"detections? in {name}\.jpg")
        assert tab.rows() == detections(service, page / f"{name}.jpg", model)
    assert tab.find("#birds-eye").is_displayed()

    image = project / "docs/samples/blood_smear_2.jpg"
    tab.find('#model option[value="blood_cells"]').click()
    tab.wait_for_text("#model-text", "blood smears")
    tab.find("#files").send_keys(str(image))
    tab.wait_for_text("#summary", r"detections? in blood_smear_2\.jpg")
    assert tab.rows() == detections(service, image, "blood_cells")

    tab.find("#threshold").send_keys(Keys.ARROW_RIGHT * 20)
    tab.wait_for_text("#threshold-value", r"0\.50")
    assert tab.rows() == detections(service, image, "blood_cells", score_threshold=0.5)
    tab.find('#classes label[data-name="RBC"] input').click()
    filtered = {"score_threshold": 0.5, "classes": ["WBC", "Platelets"]}
    assert tab.rows() == detections(service, image, "blood_cells", **filtered)

    tab.find("#options-panel summary").click()
    tab.find('#options input[name="soft_nms"]').click()
    tab.wait_for_text("#threshold-hint", "soft-NMS")
    expected = detections(service, image, "blood_cells", **filtered, soft_nms="true")
    assert tab.rows() == expected
    assert "soft_nms=true" in tab.find("#curl").text

    broken = tmp_path / "broken.png"
    broken.write_bytes(b"%PDF-1.7" + bytes(40))
    tab.find("#files").send_keys(str(broken))
    shown = tab.wait_for_text("#problem", "unsupported_image")
    problem = service.client.post("/models/blood_cells/detect", content=broken.read_bytes()).json()
    assert problem["detail"] in shown
