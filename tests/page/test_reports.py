"""Reports in Chromium: without requests, errors and accessibility problems."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.browser import serious_problems, sideways_overflow_px

from evaluation.cli import main
from model_export.report import BatchLatency, ComparedImage, render_report
from model_package import load_package
from reports.charts import Chart, Line, Mark
from reports.page import Drawing, Section, Table, render_page

pytestmark = pytest.mark.slow

HOSTILE = "\"'><img src=x onerror=alert(1)><script>alert(1)</script><b>"
VIEWS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
}
OpenReport = Callable[..., Any]


@pytest.fixture
def open_report(browser: Any) -> OpenReport:
    """Open a file; it makes no request, writes nothing to the console and has no problem."""

    def open_report(path: Path, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        page = context.new_page()
        requests: list[str] = []
        messages: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("dialog", lambda dialog: messages.append(dialog.message))
        page.goto(path.as_uri())
        assert [url for url in requests if not url.startswith("data:image/webp")] == [path.as_uri()]
        assert messages == []
        assert serious_problems(page) == []
        assert sideways_overflow_px(page) <= 0
        return page

    return open_report


@pytest.fixture(scope="module")
def evaluated(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run that is compared with an earlier one."""
    directory, samples = tmp_path_factory.mktemp("runs"), project / "docs/samples"
    arguments = [
        *("--annotations", str(samples / "blood_smears.json"), "--images", str(samples)),
        *("--package", str(project / "models/blood_cells")),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.metrics.bootstrap.RESAMPLES", 20)
        main([*arguments, "--output", str(directory / "a")])
        compared = ["--compare", str(directory / "a"), "--output", str(directory / "b")]
        main([*arguments, *compared])
    return directory / "b" / "report.html"


@pytest.mark.parametrize("view", VIEWS)
def test_an_evaluation_in_chromium(open_report: OpenReport, evaluated: Path, view: str) -> None:
    page = open_report(evaluated, **VIEWS[view])
    for link in page.locator("nav a").all():
        link.click()
        name = link.inner_text()
        assert page.locator("section", has=page.get_by_role("heading", name=name)).count()
    widths = "images => images.map(image => image.naturalWidth)"
    assert 0 not in page.locator("img").evaluate_all(widths)
    # The style sheet applies under the policy of the page: the lines of the charts have colours.
    strokes = "lines => lines.map(line => getComputedStyle(line).stroke)"
    assert len(set(page.locator("svg .line").evaluate_all(strokes))) >= 3


@pytest.mark.parametrize("model", ["blood_cells", "people"])
def test_the_report_of_a_package_in_chromium(
    open_report: OpenReport, project: Path, tmp_path: Path, model: str
) -> None:
    package = load_package(project / "models" / model)
    assert package.manifest.references is not None
    with np.load(package.directory / package.manifest.references.file) as file:
        arrays = dict(file)
    images = [
        ComparedImage(
            image, {"fp32": outputs, "fp16": outputs, "int8": outputs}, [f"image {index}"]
        )
        for index, image in enumerate(arrays.pop("images"))
        for outputs in [{name: values[index] for name, values in arrays.items()}]
    ]
    path = tmp_path / "report.html"
    path.write_text(render_report(package.manifest, images, [BatchLatency(1, 0.01, 5)]), "utf-8")
    page = open_report(path, color_scheme="dark")
    assert page.locator("img").count() == len(images)
    assert page.locator("tbody th", has_text="scores").count()


def test_untrusted_texts_are_shown_as_they_are(open_report: OpenReport, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "WEBP")
    drawing = Drawing(HOSTILE, buffer.getvalue(), 9, 9)
    table = Table([HOSTILE, "AP"], [[HOSTILE, 0.5]], HOSTILE, HOSTILE, {1: [0.5]}, "heat")
    chart = Chart(HOSTILE, HOSTILE, HOSTILE, [Line(HOSTILE, [0, 1], [0, 1])], [Mark(HOSTILE, 1)])
    path = tmp_path / "report.html"
    section = Section(HOSTILE, [table, chart, drawing], HOSTILE)
    path.write_text(render_page(HOSTILE, [HOSTILE], [(HOSTILE, 0.5)], [section]), "utf-8")
    page = open_report(path)
    assert page.title() == HOSTILE
    assert page.locator("h1").inner_text() == page.locator("h2").inner_text() == HOSTILE
    assert page.locator("tbody th").inner_text() == HOSTILE
    assert page.locator("script, b, img[src=x]").count() == 0
