"""The web page in Chromium, with the bundled models."""

import base64
import io
import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from support.browser import in_every_browser, serious_problems, sideways_overflow_px
from support.images import encode, plain, quadrants
from support.serving import (
    BOXES,
    ColourEngine,
    FixedEngine,
    RunningServer,
    make_manifest,
    one_model,
    run_server,
    run_server_with_loader,
    wait_until,
)
from support.tasks import (
    CANVAS_3D,
    EXTREME_POINT_ROWS,
    EXTREME_POINTS,
    POSES_AND_BOXES_3D,
    POSES_AND_BOXES_3D_ROWS,
)
from support.tools import find_tool

from service.model_loader import ModelLoader
from service.model_registry import ModelRegistry, load_models
from service.model_repository import FailedPackage
from service.observability.metrics import Metrics
from service.settings import Settings

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
TIMEOUT_MS = 15_000
"""Of every expectation; a busy machine takes more than Playwright's 5 s for the largest images."""
expect.set_options(timeout=TIMEOUT_MS)

pytestmark = pytest.mark.slow

MAX_FIRST_VIEW_BYTES = 100_000
KEY = "first-key-0123456789"
SAMPLES = {
    "blood_cells": "blood_smear_1.jpg",
    "people": "people_1.jpg",
    "road_vehicles": "road_0002.jpg",
}
RECORD_VIOLATIONS = """
globalThis.violations = [];
document.addEventListener("securitypolicyviolation",
    (event) => violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""
CORNERS_OF_COLOUR = """([colour]) => {
    const canvas = document.getElementById("overlay");
    const { width, height } = canvas;
    const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
    const columns = new Array(width).fill(0), rows = new Array(height).fill(0);
    for (let y = 0; y < height; y += 1) {
        for (let x = 0; x < width; x += 1) {
            const at = 4 * (y * width + x);
            if (colour.every((value, index) => data[at + index] === value)) {
                columns[x] += 1;
                rows[y] += 1;
            }
        }
    }
    return { width, height, columns, rows };
}"""

PIXEL_OF_OVERLAY = """([image, [x, y]]) => {
    const canvas = document.getElementById("overlay");
    const scale = Math.min(canvas.width / image.width, canvas.height / image.height);
    const left = (canvas.width - image.width * scale) / 2 + (x + 0.5) * scale;
    const top = (canvas.height - image.height * scale) / 2 + (y + 0.5) * scale;
    return [...canvas.getContext("2d").getImageData(left, top, 1, 1).data];
}"""


@pytest.fixture(scope="module")
def service(project: Path) -> Iterator[RunningServer]:
    """A server with the bundled models."""
    settings = Settings(models=project / "models", default_model="blood_cells", max_batch_size=4)
    with run_server(lambda *given: load_models(*given, print), settings) as running:
        yield running


@dataclass
class Tab:
    """A page of the browser, and what it did."""

    page: Any
    foreign: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    detections: list[str] = field(default_factory=list)

    def upload(self, *files: dict[str, Any] | Path) -> None:
        self.page.locator("#files").set_input_files(list(files))

    def expect_result(self, name: str) -> None:
        pattern = re.compile(rf"detections? in {re.escape(name)} .* ms")
        expect(self.page.locator("#summary")).to_have_text(pattern)

    def show_sample(self, model: str) -> None:
        name = SAMPLES[model]
        self.page.locator(f'#samples img[src$="{name.replace(".jpg", ".webp")}"]').click()
        self.expect_result(name)

    def set_threshold(self, value: float) -> None:
        self.page.locator("#threshold").fill(str(value))

    def rows(self) -> list[list[str]]:
        table = self.page.locator("#detections tbody tr")
        return [[cell.strip() for cell in row.split("\t")] for row in table.all_inner_texts()]


OpenPage = Callable[..., Tab]


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """Open the page of a server; afterwards, nothing may have gone wrong in it."""
    opened: list[Tab] = []

    def open_page(running: RunningServer, path: str = "/", **options: Any) -> Tab:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        context.set_default_timeout(TIMEOUT_MS)
        context.add_init_script(RECORD_VIOLATIONS)
        tab = Tab(context.new_page())

        def record_request(request: Any) -> None:
            if not request.url.startswith((running.url, "blob:", "data:")):
                tab.foreign.append(request.url)
            if "/detect" in request.url:
                tab.detections.append(request.url)

        def record_console(message: Any) -> None:
            # The browser's own line for each response with an error status.
            if message.type == "error" and not message.text.startswith("Failed to load resource"):
                tab.errors.append(message.text)

        def record_response(response: Any) -> None:
            if response.status >= 400 and re.search(r"/(page|docs)(/|$)", response.url):
                tab.errors.append(f"{response.url}: status {response.status}")

        tab.page.on("request", record_request)
        tab.page.on("response", record_response)
        tab.page.on("console", record_console)
        tab.page.on("pageerror", lambda error: tab.errors.append(str(error)))
        tab.page.goto(running.url + path)
        opened.append(tab)
        return tab

    yield open_page
    for tab in opened:
        assert tab.errors == []
        assert tab.foreign == []
        assert tab.page.evaluate("violations") == []
        tab.page.context.close()


@pytest.fixture
def tab(open_page: OpenPage, service: RunningServer) -> Tab:
    """The page of the bundled models."""
    opened = open_page(service)
    expect(opened.page.locator("#state")).to_have_text("Ready")
    return opened


def sample(project: Path, model: str) -> Path:
    return project / "service/http/page" / SAMPLES[model]


def detections(service: RunningServer, image: bytes, model: str, **query: Any) -> Any:
    response = service.client.post(f"/models/{model}/detect", content=image, params=query)
    assert response.status_code == 200, response.text
    return response.json()["detections"]


def names_and_scores(found: Sequence[Any]) -> list[list[str]]:
    return [[one["class_name"], f"{one['score']:.3f}"] for one in found]


def test_the_first_view_is_small(tab: Tab) -> None:
    sizes = tab.page.evaluate(
        "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType("
        "'resource')].map((entry) => [entry.name, entry.transferSize])"
    )
    assert len(sizes) > 8
    assert sum(size for _, size in sizes) < MAX_FIRST_VIEW_BYTES, sizes


@in_every_browser
@pytest.mark.parametrize("model", SAMPLES)
def test_a_sample_shows_what_the_service_returns(
    tab: Tab, service: RunningServer, project: Path, model: str
) -> None:
    tab.show_sample(model)
    assert tab.page.locator("#model").input_value() == model
    expected = detections(service, sample(project, model).read_bytes(), model)
    assert [row[:2] for row in tab.rows()] == names_and_scores(expected)
    assert tab.page.locator("#count").inner_text() == str(len(expected))


@in_every_browser
def test_an_upload_shows_the_stages_and_the_batch(tab: Tab, project: Path) -> None:
    tab.upload(project / "docs/samples/blood_smear_2.jpg")
    tab.expect_result("blood_smear_2.jpg")
    stages = tab.page.locator("#waterfall tr").all_inner_texts()
    assert [row.split("\t")[0] for row in stages] == [
        *("Wait for decoding", "Decode and resize", "Wait for a batch", "Engine", "Boxes"),
        "Network, HTTP, JSON",
    ]
    assert tab.page.locator("#batch").inner_text().startswith("Batch of 1 (")


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.9])
def test_the_threshold_gives_what_the_service_gives_without_asking_it(
    tab: Tab, service: RunningServer, project: Path, threshold: float
) -> None:
    tab.show_sample("blood_cells")
    tab.set_threshold(threshold)
    image = sample(project, "blood_cells").read_bytes()
    expected = detections(service, image, "blood_cells", score_threshold=threshold)
    assert [row[:2] for row in tab.rows()] == names_and_scores(expected)
    assert len(tab.detections) == 1


@in_every_browser
def test_class_filters_act_without_asking_the_service(
    tab: Tab, service: RunningServer, project: Path
) -> None:
    tab.show_sample("blood_cells")
    tab.page.get_by_role("checkbox", name="RBC").uncheck()
    image = sample(project, "blood_cells").read_bytes()
    expected = detections(service, image, "blood_cells", classes=["WBC", "Platelets"])
    assert [row[:2] for row in tab.rows()] == names_and_scores(expected)
    tab.page.locator("#no-classes").click()
    assert tab.rows() == []
    assert tab.page.locator("#copy-curl").is_disabled()
    tab.page.locator("#all-classes").click()
    assert len(tab.rows()) > len(expected)
    assert len(tab.detections) == 1


def test_candidates_are_listed_below_the_detections(tab: Tab) -> None:
    tab.show_sample("people")
    before = len(tab.rows())
    tab.page.get_by_role("checkbox", name="Show candidates").check()
    assert len(tab.rows()) == 100
    assert tab.page.locator("#detections tr.low").count() == 100 - before
    assert tab.page.locator("#count").inner_text() == str(before)


@in_every_browser
def test_pointing_at_a_missed_object_shows_its_best_candidate(
    tab: Tab, service: RunningServer, project: Path
) -> None:
    tab.show_sample("blood_cells")
    image = sample(project, "blood_cells").read_bytes()
    first = detections(service, image, "blood_cells")[0]
    x1, y1, x2, y2 = first["bbox"]
    point_at(tab, (x1 + x2) / 2, (y1 + y2) / 2)
    text = tab.page.locator("#tip").inner_text()
    assert text.startswith(f"{first['class_name']} {first['score']:.3f}")
    assert f"x {x1:.1f} to {x2:.1f}" in text
    tab.set_threshold(1)
    point_at(tab, (x1 + x2) / 2 + 1, (y1 + y2) / 2)
    best = f"no score reaches the threshold; the best is {first['score']:.3f}"
    assert f"{best} ({first['class_name']})" in tab.page.locator("#summary").inner_text()
    text = tab.page.locator("#tip").inner_text()
    assert text.startswith(f"Best candidate here: {first['class_name']} {first['score']:.3f}")
    assert "below the threshold 1.00" in text


def point_at(tab: Tab, x: float, y: float) -> None:
    """Move the pointer to a point of the image of 640 x 480 pixels."""
    box = tab.page.locator("#overlay").bounding_box()
    scale = min(box["width"] / 640, box["height"] / 480)
    left = box["x"] + (box["width"] - 640 * scale) / 2
    top = box["y"] + (box["height"] - 480 * scale) / 2
    tab.page.mouse.move(left + x * scale, top + y * scale)


@in_every_browser
def test_options_of_the_model_are_sent(tab: Tab, service: RunningServer, project: Path) -> None:
    tab.show_sample("blood_cells")
    tab.page.get_by_text("Options of the model").click()
    tab.page.get_by_role("checkbox", name="soft_nms").check()
    scales = tab.page.get_by_label("Scales, at most 8")
    scales.press_sequentially("0.75, 1")  # Firefox sends no change event for what scripts set
    scales.press("Enter")
    tab.expect_result(SAMPLES["blood_cells"])
    image = sample(project, "blood_cells").read_bytes()
    options = {"scales": "0.75,1", "soft_nms": "true"}
    expected = names_and_scores(detections(service, image, "blood_cells", **options))
    # The change of the first option was sent, too.
    wait_until(lambda: [row[:2] for row in tab.rows()] == expected)
    assert "soft-NMS" in tab.page.locator("#threshold-hint").inner_text()
    scales.press("ControlOrMeta+a")
    scales.press_sequentially("9")
    scales.press("Enter")
    expect(tab.page.locator("#problem")).to_contain_text("scales")


def test_3d_boxes_have_a_view_from_above_and_a_camera(
    tab: Tab, service: RunningServer, project: Path
) -> None:
    assert tab.page.locator("#birds-eye-panel").is_hidden()
    tab.show_sample("road_vehicles")
    drawn = "(canvas) => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, "
    drawn += "canvas.height).data).size"
    assert tab.page.locator("#birds-eye").evaluate(drawn) > 10
    image = sample(project, "road_vehicles").read_bytes()

    def depths(**camera: Any) -> list[str]:
        found = detections(service, image, "road_vehicles", **camera)
        return [f"{one['box3d']['depth']:.1f}" for one in found]

    assert [row[2].partition(",")[0] for row in tab.rows()] == depths()
    tab.page.get_by_text("Options of the model").click()
    for name, value in {"fx": 500, "fy": 500, "cx": 310, "cy": 65}.items():
        tab.page.get_by_label(f"Camera {name} (px)").fill(str(value))
    tab.page.get_by_label("Camera cy (px)").press("Enter")
    expect(tab.page.locator("#problem")).to_be_hidden()
    tab.expect_result(SAMPLES["road_vehicles"])
    assert "fx=500" in tab.detections[-1]
    tab.show_sample("people")
    assert tab.page.locator("#birds-eye-panel").is_hidden()


def test_keypoints_and_3d_boxes_of_one_object_are_shown_together(open_page: OpenPage) -> None:
    manifest = make_manifest(POSES_AND_BOXES_3D, CANVAS_3D)
    engine = FixedEngine(POSES_AND_BOXES_3D_ROWS)
    with run_server(one_model(engine, manifest), Settings()) as running:
        tab = open_page(running)
        upload_image(tab, encode(plain(1, 2)))
        assert tab.page.locator("#birds-eye-panel").is_visible()
        tab.page.locator("#viewer").focus()
        tab.page.keyboard.press("ArrowRight")
        text = tab.page.locator("#tip").inner_text()
        assert "depth 20.00 m" in text
        assert "1 of 2 keypoints found" in text


def test_extreme_points_are_listed_and_their_octagon_is_filled(open_page: OpenPage) -> None:
    engine, manifest = FixedEngine(EXTREME_POINT_ROWS), make_manifest(EXTREME_POINTS)
    with run_server(one_model(engine, manifest), Settings()) as running:
        tab = open_page(running)
        content = encode(plain(1, 2))
        upload_image(tab, content)
        (found,) = running.client.post("/detect", content=content).json()["detections"]
        x1, y1, x2, y2 = found["bbox"]
        inside, outside = ((x1 + x2) / 2, (y1 + y2) / 2), (x2 - (x2 - x1) / 8, y2 - (y2 - y1) / 8)
        image = {"width": 64, "height": 64}
        filled, empty = (
            tab.page.evaluate(PIXEL_OF_OVERLAY, [image, point]) for point in (inside, outside)
        )
        assert filled == pytest.approx([0xD5, 0x5E, 0x00, 0.35 * 255], abs=3)
        assert empty[3] == 0
        tab.page.locator("#viewer").focus()
        tab.page.keyboard.press("ArrowRight")
        top = [round(value) for value in found["extreme_points"][0]]
        assert f"Top {top[0]}, {top[1]}; left " in tab.page.locator("#tip").inner_text()


@in_every_browser
def test_everything_works_with_the_keyboard(tab: Tab) -> None:
    page = tab.page
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # skip to the image
    expect(page.locator("#viewer")).to_be_focused()
    for _ in range(20):
        if page.evaluate("document.activeElement.closest('#samples button') !== null"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    tab.expect_result(SAMPLES["blood_cells"])
    total = len(tab.rows())
    page.locator("#viewer").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#summary")).to_contain_text(f"1 of {total}: ")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#summary")).to_contain_text(f"{total} of {total}: ")
    assert page.locator("#detections tr.on").count() == 1
    page.keyboard.press("Escape")
    expect(page.locator("#summary")).to_contain_text("detections in")
    page.keyboard.press("+")
    expect(page.locator("#viewer")).to_have_class("zoomed")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("0")
    expect(page.locator("#viewer")).not_to_have_class("zoomed")
    page.locator("#threshold").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#threshold-value")).to_have_text("0.31")
    page.locator("#detections button").nth(1).focus()
    assert page.locator("#detections tr").nth(2).get_attribute("class") == "on"


@in_every_browser
@pytest.mark.parametrize(
    ("content", "code"),
    [(b"%PDF-1.7" + bytes(40), "unsupported_image"), (encode(plain(1, 2))[:60], "bad_image")],
)
def test_errors_are_shown_as_the_service_states_them(
    tab: Tab, service: RunningServer, content: bytes, code: str
) -> None:
    problem = service.client.post("/detect", content=content).json()
    assert problem["code"] == code
    tab.upload({"name": "broken.png", "mimeType": "image/png", "buffer": content})
    shown = tab.page.locator("#problem")
    expect(shown).to_contain_text(problem["title"])
    expect(shown).to_contain_text(problem["detail"])
    expect(shown).to_contain_text(code)
    tab.upload({"name": "no image.txt", "mimeType": "text/plain", "buffer": b"text"})
    expect(tab.page.locator("#not-shown")).to_be_visible()
    expect(tab.page.locator("#opened .named").last).to_have_text("no image.txt")
    tab.show_sample("blood_cells")
    expect(tab.page.locator("#not-shown")).to_be_hidden()
    expect(shown).to_be_hidden()


@contextmanager
def server_with_boxes(**settings: Any) -> Iterator[RunningServer]:
    """Serve a model that returns one box, of the centre (6, 9) and the size (5, 3) in cells."""
    rows = {
        "scores": np.float32([0.9, 0, 0, 0, 0]),
        "class_ids": np.int32([0] * 5),
        "centers": np.float32([[6, 9]] * 5),
        "sizes": np.float32([[5, 3]] * 5),
    }
    assert BOXES.top_k == len(rows["scores"])
    with run_server(one_model(FixedEngine(rows)), Settings(**settings)) as running:
        yield running


@in_every_browser
def test_asks_for_an_api_key(open_page: OpenPage, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\n")
    with server_with_boxes(api_keys_file=keys) as running:
        tab = open_page(running)
        form = tab.page.locator("#key-form")
        expect(form).to_be_visible()
        tab.page.get_by_label("This service needs an API key").fill("wrong-key-0123456789")
        tab.page.get_by_role("button", name="Use key").click()
        expect(form).to_contain_text("an unknown API key")
        tab.page.get_by_label("This service needs an API key").fill(KEY)
        tab.page.keyboard.press("Enter")
        expect(form).to_be_hidden()
        expect(tab.page.locator("#state")).to_have_text("Ready")
        upload_image(tab, encode(plain(1, 2)))
        command = tab.page.locator("#curl").inner_text()
        assert '-H "X-API-Key: $CENTERNET_API_KEY"' in command
        assert KEY not in tab.page.content()
        tab.page.reload()
        expect(tab.page.locator("#state")).to_have_text("Ready")


def test_shows_that_models_are_being_loaded_and_which_have_failed(open_page: OpenPage) -> None:
    gate = threading.Event()

    def load(report_step: Callable[[str], None]) -> ModelRegistry:
        report_step("loading painted, 1 of 2")
        assert gate.wait(60)
        models = one_model(ColourEngine())(settings, metrics)
        reason = "model.json is not valid"
        models._unreadable = [FailedPackage(Path("broken"), "broken", "", reason, OSError())]
        return models

    settings, metrics = Settings(), Metrics()
    with run_server_with_loader(ModelLoader(load), settings, metrics) as running:
        try:
            tab = open_page(running)
            expect(tab.page.locator("#state")).to_have_text("Loading models")
            starting = tab.page.locator("#starting")
            expect(starting).to_have_text("The service is starting: loading painted, 1 of 2.")
            assert serious_problems(tab.page) == []
            expect(tab.page.locator("#problem")).to_be_hidden()
        finally:
            gate.set()
        expect(tab.page.locator("#state")).to_have_text("Ready")
        expect(starting).to_be_hidden()
        expect(tab.page.locator("#model-text")).to_have_text("A model of the tests")
        tab.page.locator("#status").scroll_into_view_if_needed()
        broken = tab.page.locator("#models tbody tr", has_text="broken")
        expect(broken).to_contain_text("model.json is not valid")
        options = tab.page.locator("#model option")
        assert options.evaluate_all("(all) => all.map(({ disabled }) => disabled)") == [False, True]
        running.state.draining.set()
        stopping = running.client.get("/readyz").json()
        expect(tab.page.locator("#state")).to_have_text(stopping["title"])


def test_a_lost_connection_is_stated_and_requests_can_be_repeated(
    open_page: OpenPage, project: Path
) -> None:
    with server_with_boxes() as running:
        tab = open_page(running)
        state, problem = tab.page.locator("#state"), tab.page.locator("#problem")
        expect(state).to_have_text("Ready")
        tab.page.context.set_offline(True)
        tab.upload(project / "docs/samples/blood_smear_2.jpg")
        expect(problem).to_contain_text("The service cannot be reached")
        tab.page.locator("#samples button").nth(2).click()
        expect(problem).to_contain_text("The service cannot be reached")
        expect(state).to_have_text("No response")
        tab.page.context.set_offline(False)
        problem.get_by_role("button", name="Try again").click()
        tab.expect_result(SAMPLES["people"])
        expect(problem).to_be_hidden()
        expect(state).to_have_text("Ready")
        tab.page.locator("#opened button").first.click()
        tab.expect_result("blood_smear_2.jpg")


def test_the_models_are_read_again_after_a_restart(open_page: OpenPage) -> None:
    other = make_manifest().model_copy(update={"name": "repainted"})
    with (
        server_with_boxes() as first,
        run_server(one_model(ColourEngine(), other), Settings()) as second,
    ):
        tab = open_page(first)
        state = tab.page.locator("#state")
        expect(state).to_have_text("Ready")
        tab.set_threshold(0.5)
        upload_image(tab, encode(plain(1, 2)))
        tab.page.context.set_offline(True)
        expect(state).to_have_text("No response")
        tab.page.context.set_offline(False)
        expect(state).to_have_text("Ready")
        # The same model: nothing that was chosen is lost.
        assert tab.page.locator("#threshold-value").inner_text() == "0.50"
        assert len(tab.detections) == 1
        tab.page.context.set_offline(True)
        expect(state).to_have_text("No response")

        def redirect(route: Any) -> None:
            route.continue_(url=route.request.url.replace(first.url, second.url))

        tab.page.route(f"{first.url}/**", redirect)
        tab.page.context.set_offline(False)
        expect(tab.page.locator("#model")).to_have_value("repainted")
        tab.expect_result("image.png")
        assert "/models/repainted/detect" in tab.detections[-1]


def upload_image(tab: Tab, content: bytes, name: str = "image.png") -> None:
    kind = "image/jpeg" if content.startswith(b"\xff\xd8") else "image/png"
    tab.upload({"name": name, "mimeType": kind, "buffer": content})
    tab.expect_result(name)


def with_orientation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(quadrants(480, 320), "JPEG", quality=95, exif=exif)


IMAGES = {
    **{f"EXIF orientation {value}": with_orientation(value) for value in (1, 2, 3, 5, 6, 8)},
    "16 x 16": encode(plain(90, 90, 90, (16, 16))),
    "16 x 200": encode(plain(90, 90, 90, (200, 16))),
    "12000 x 4000": encode(plain(90, 90, 90, (4000, 12000)), "JPEG"),
}


@in_every_browser
@pytest.mark.parametrize("pixel_ratio", [1, 2])
def test_boxes_are_drawn_where_the_response_says(open_page: OpenPage, pixel_ratio: int) -> None:
    with server_with_boxes() as running:
        tab = open_page(running, device_scale_factor=pixel_ratio)
        expect(tab.page.locator("#state")).to_have_text("Ready")
        for name, content in IMAGES.items():
            upload_image(tab, content, f"{name}.png")
            response = running.client.post("/detect", content=content).json()
            expected = response["detections"][0]["bbox"]
            drawn, scale = drawn_box(tab, response["image"])
            pixels = np.abs(np.subtract(drawn, expected)) * scale  # of the canvas
            assert pixels.max() <= 1, (name, drawn, expected)


def drawn_box(tab: Tab, image: dict[str, int]) -> tuple[list[float], float]:
    """Return the box that the canvas shows, in pixels of the image, and the canvas's scale.

    Each side is found as the row or the column with the most pixels of the colour of the class.
    """
    pixels = tab.page.evaluate(CORNERS_OF_COLOUR, [[0xD5, 0x5E, 0x00, 255]])
    scale = min(pixels["width"] / image["width"], pixels["height"] / image["height"])
    sides = []
    for counts, size in ((pixels["columns"], "width"), (pixels["rows"], "height")):
        found = np.array(counts)
        assert found.any()
        line = np.flatnonzero(found > 0.6 * found.max())
        gap = np.flatnonzero(np.diff(line) > 1)
        assert len(gap) >= 1, "one side only"
        ends = (line[: gap[0] + 1].mean() + 0.5, line[gap[-1] + 1 :].mean() + 0.5)
        offset = (pixels[size] - image[size] * scale) / 2
        # Integer coordinates are centres of pixels.
        sides.append([(end - offset) / scale - 0.5 for end in ends])
    (x1, x2), (y1, y2) = sides
    return [x1, y1, x2, y2], scale


@in_every_browser
def test_images_are_shown_upright(open_page: OpenPage) -> None:
    with server_with_boxes() as running:
        tab = open_page(running)
        expect(tab.page.locator("#state")).to_have_text("Ready")
        for name, content in IMAGES.items():
            if not name.startswith("EXIF"):
                continue
            upload_image(tab, content, f"{name}.jpg")
            with Image.open(io.BytesIO(content)) as image:
                upright = ImageOps.exif_transpose(image).convert("RGB")
            shown = tab.page.locator("#image").evaluate(
                "(canvas) => canvas.toDataURL('image/png').split(',')[1]"
            )
            assert quadrant_colours(upright) == quadrant_colours(decode_png(shown)), name


def decode_png(text: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    return image.crop(image.getbbox(alpha_only=True)).convert("RGB")


def quadrant_colours(image: Image.Image) -> list[tuple[int, ...]]:
    """Return the colour in the middle of each quadrant, in steps of 64."""
    width, height = image.size
    points = [(x * width // 4, y * height // 4) for x in (1, 3) for y in (1, 3)]
    return [tuple(value // 64 for value in image.getpixel(point)) for point in points]


@in_every_browser
def test_several_images_can_be_dropped_and_pasted(tab: Tab) -> None:
    send = """([kind, names]) => {
        const data = new DataTransfer();
        const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 48 });
        canvas.getContext("2d").fillRect(0, 0, 64, 48);
        return new Promise((resolve) => canvas.toBlob((blob) => {
            for (const name of names) data.items.add(new File([blob], name, { type: blob.type }));
            const event = kind === "paste"
                ? new ClipboardEvent("paste", { bubbles: true })
                : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
            // Firefox has no such argument of the constructor.
            if (kind === "paste") Object.defineProperty(event, "clipboardData", { value: data });
            document.body.dispatchEvent(event);
            resolve();
        }));
    }"""
    tab.page.evaluate(send, ["drop", ["a.png", "b.png", "c.png"]])
    tab.expect_result("a.png")
    tab.page.evaluate(send, ["paste", ["d.png"]])
    tab.expect_result("d.png")
    opened = tab.page.locator("#opened button")
    assert opened.count() == 4
    opened.nth(1).click()
    tab.expect_result("b.png")
    assert opened.nth(1).get_attribute("aria-pressed") == "true"
    assert len(tab.detections) == 4, "each image is sent once"


RECORD_CAMERAS = """
globalThis.cameraTracks = [];
globalThis.openCamera = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async (wanted) => {
    const stream = await openCamera(wanted);
    cameraTracks.push(...stream.getTracks());
    return stream;
};
undefined;  // a function as the result would be called
"""
IS_RELEASED = "cameraTracks.every((track) => track.readyState === 'ended')"


def start_camera(tab: Tab) -> Any:
    """Record the tracks of cameras from now on, and show frames of one."""
    tab.page.evaluate(RECORD_CAMERAS)
    button = tab.page.locator("#camera")
    button.click()
    tab.expect_result("camera.jpg")
    expect(button).to_have_attribute("aria-pressed", "true")
    assert not tab.page.evaluate(IS_RELEASED)
    return button


def expect_released(tab: Tab) -> None:
    expect(tab.page.locator("#camera")).to_have_attribute("aria-pressed", "false")
    wait_until(lambda: bool(tab.page.evaluate(IS_RELEASED)))


@in_every_browser
def test_the_camera_shows_frames_until_it_is_stopped(tab: Tab) -> None:
    button = start_camera(tab)
    frames = len(tab.detections)
    for _ in range(2):
        with tab.page.expect_request(re.compile("/detect")):
            pass
    assert len(tab.detections) >= frames + 2
    button.click()
    expect_released(tab)
    tab.expect_result("camera.jpg")  # the last frame stays
    sent = len(tab.detections)
    tab.show_sample("blood_cells")
    assert len(tab.detections) == sent + 1, "no frame is sent after the stop"


def test_an_image_ends_the_camera(tab: Tab) -> None:
    start_camera(tab)
    tab.show_sample("people")
    expect_released(tab)
    assert tab.page.evaluate("cameraTracks.length") == 1


def test_a_camera_that_is_withdrawn_before_it_opens_is_released(tab: Tab) -> None:
    tab.page.evaluate(RECORD_CAMERAS)
    tab.page.locator("#camera").evaluate("(button) => { button.click(); button.click(); }")
    wait_until(lambda: bool(tab.page.evaluate("cameraTracks.length")))
    expect_released(tab)
    assert tab.detections == []


def test_problems_of_the_camera_are_stated(tab: Tab) -> None:
    problem = tab.page.locator("#problem")
    start_camera(tab)
    tab.page.evaluate("cameraTracks[0].dispatchEvent(new Event('ended'))")
    expect(problem).to_contain_text("The camera was disconnected")
    expect_released(tab)
    refuse = "(name) => { navigator.mediaDevices.getUserMedia = async () => { "
    refuse += "throw new DOMException('no reason', name); }; }"
    for name, text in (
        ("NotAllowedError", "was not allowed to use the camera"),
        ("NotFoundError", "No camera was found"),
        ("NotReadableError", "another program may be using it"),
        ("OverconstrainedError", "cannot be used: no reason"),
    ):
        tab.page.evaluate(refuse, name)
        tab.page.locator("#camera").click()
        expect(problem).to_contain_text(text)
        expect_released(tab)


def test_the_camera_waits_when_the_service_limits_the_rate(open_page: OpenPage) -> None:
    with server_with_boxes(rate_limit_per_s=1, rate_limit_burst=3) as running:
        tab = open_page(running)
        expect(tab.page.locator("#camera")).to_be_enabled()
        button = start_camera(tab)
        expect(tab.page.locator("#problem")).to_contain_text("This client sends too many requests")
        expect(button).to_have_attribute("aria-pressed", "true")
        tab.expect_result("camera.jpg")
        button.click()
        expect_released(tab)


def test_results_can_be_saved_and_repeated_with_curl(
    tab: Tab, service: RunningServer, project: Path, tmp_path: Path
) -> None:
    curl = find_tool("curl", "Debian: apt-get install curl")
    tab.show_sample("blood_cells")
    tab.page.get_by_role("checkbox", name="RBC").uncheck()
    tab.set_threshold(0.45)
    image = sample(project, "blood_cells").read_bytes()
    query = {"score_threshold": 0.45, "classes": ["WBC", "Platelets"]}
    expected = detections(service, image, "blood_cells", **query)
    assert expected
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="Save JSON").click()
    assert json.loads(Path(download.value.path()).read_text())["detections"] == expected
    (tmp_path / SAMPLES["blood_cells"]).write_bytes(image)
    command = tab.page.locator("#curl").inner_text()
    assert command.startswith("curl ")
    repeated = subprocess.run(
        ["sh", "-c", command.replace("curl", f"{curl} --silent", 1)],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    assert json.loads(repeated.stdout)["detections"] == expected
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="Save image").click()
    assert download.value.suggested_filename == "blood_smear_1_detections.png"
    with Image.open(download.value.path()) as annotated:
        assert annotated.size == (640, 480)
        colours = {colour for _, colour in annotated.convert("RGB").getcolors(1 << 20) or ()}
    assert (0x00, 0x72, 0xB2) in colours


def test_the_status_lists_models_rates_and_percentiles(tab: Tab) -> None:
    tab.page.locator("#status").scroll_into_view_if_needed()
    tab.show_sample("people")
    tab.page.locator("#latency").scroll_into_view_if_needed()
    models = tab.page.locator("#models tbody tr")
    expect(models).to_have_count(3)
    assert all(
        "ready" in row and re.search("fp32|bf16|int8", row) for row in models.all_inner_texts()
    )
    infer = tab.page.locator("#latency tbody tr", has_text="Engine").locator("td")
    expect(infer).to_have_text([*[re.compile(r"^\d+\.\d$")] * 3, re.compile(r"^[1-9]\d*$")])
    mean_batch = tab.page.locator("#models tbody tr", has_text="people").locator("td").nth(3)
    expect(mean_batch).to_have_text("1.0")


VIEWS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
}


@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_no_serious_problem(
    open_page: OpenPage, service: RunningServer, view: str
) -> None:
    tab = open_page(service, **VIEWS[view])
    expect(tab.page.locator("#state")).to_have_text("Ready")
    tab.show_sample("road_vehicles")
    tab.page.get_by_text("Options of the model").click()
    assert serious_problems(tab.page) == []
    assert sideways_overflow_px(tab.page) <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_problem_in_any_state(
    open_page: OpenPage, tmp_path: Path, scheme: str
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\n")
    with server_with_boxes(api_keys_file=keys) as running:
        tab = open_page(running, color_scheme=scheme)
        page = tab.page

        def check(state: str) -> None:
            assert serious_problems(page) == [], state
            assert sideways_overflow_px(page) <= 0, state

        for key, text in (("wrong-key-0123456789", "needs an API key"), (KEY, "unknown API key")):
            expect(page.locator("#key-form")).to_contain_text(text)
            check(text)
            page.locator("#key").fill(key)
            page.get_by_role("button", name="Use key").click()
        expect(page.locator("#state")).to_have_text("Ready")
        check("no image")
        tab.upload({"name": "a.png", "mimeType": "image/png", "buffer": b"%PDF-1.7" + bytes(40)})
        expect(page.locator("#problem")).to_be_visible()
        check("an error")
        for name in ("one.png", "two.png"):
            upload_image(tab, encode(plain(90, 90)), name)
        page.get_by_role("checkbox", name="Show candidates").check()
        page.locator("#viewer").focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#tip")).to_be_visible()
        check("several images, candidates, and the numbers of one detection")
        start_camera(tab)
        check("a camera")
        page.locator("#camera").click()
        running.state.draining.set()
        expect(page.locator("#state")).not_to_have_text("Ready")
        check("the service stops")


def test_the_api_documentation_works_without_a_network(
    open_page: OpenPage, service: RunningServer
) -> None:
    tab = open_page(service, "/docs")
    operation = tab.page.locator("#operations-models-list_models")
    expect(operation).to_be_visible()
    operation.locator("button").first.click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").click()
    expect(operation.locator(".live-responses-table")).to_contain_text("blood_cells")
