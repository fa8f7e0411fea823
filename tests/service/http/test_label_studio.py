"""The ML backend of Label Studio."""

import base64
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from support.fake_label_studio import (
    ACCESS_TOKEN,
    LEGACY_TOKEN,
    PERSONAL_TOKEN,
    FakeLabelStudio,
    fake_label_studio,
)
from support.images import encode, plain
from support.serving import (
    ColourEngine,
    FixedEngine,
    GatedEngine,
    RunningServer,
    assert_problem,
    make_manifest,
    wait_until,
)
from support.tasks import EXTREME_POINT_ROWS, EXTREME_POINTS, POSE_ROWS, POSES

from service.cli import main

StartServer = Callable[..., RunningServer]
IMAGE = encode(plain(8, 6, size=(48, 64)))
CONFIG = (
    '<View><Image name="image" value="$image"/><RectangleLabels name="box" toName="image">'
    '<Label value="Red"/><Label value="Cold" predicted_values="blue"/></RectangleLabels></View>'
)
POSE_CONFIG = CONFIG.replace(
    "</View>",
    '<KeyPointLabels name="point" toName="image"><Label value="nose"/><Label value="tail"/>'
    "</KeyPointLabels></View>",
)


def data_uri(image: bytes = IMAGE) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()


def predict(
    server: RunningServer, *images: Any, config: str = CONFIG, path: str = "/label-studio/predict"
) -> httpx.Response:
    """Send tasks as Label Studio does."""
    tasks = [
        {"id": number, "data": {"image": image}, "annotations": [], "predictions": []}
        for number, image in enumerate(images, start=1)
    ]
    params = {"login": None, "password": None, "context": None}
    body = {"tasks": tasks, "project": "1.1700000000", "label_config": config, "params": params}
    return server.client.post(path, json=body)


def results(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200, response.text
    found: list[Any] = response.json()["results"]
    return found


@pytest.mark.parametrize("prefix", ["/label-studio", "/label-studio/painted"])
def test_a_model_is_set_up(server: RunningServer, prefix: str) -> None:
    health = server.client.get(f"{prefix}/health")
    assert (health.status_code, health.json()) == (
        200,
        {"status": "UP", "model_class": "painted"},
    )
    body = {"project": "1.17", "schema": CONFIG, "hostname": "http://x", "access_token": "y"}
    response = server.client.post(f"{prefix}/setup", json={**body, "extra_params": None})
    assert (response.status_code, response.json()) == (200, {"model_version": "painted 1"})


@pytest.mark.parametrize("path", ["/label-studio/predict", "/label-studio/painted/predict"])
def test_regions_are_the_boxes_of_detect(server: RunningServer, path: str) -> None:
    every = server.client.post("/detect", content=IMAGE).json()["detections"]
    labels = {"red": "Red", "blue": "Cold"}
    expected = [found for found in every if found["class_name"] in labels]
    assert 1 < len(expected) < len(every)
    (prediction,) = results(predict(server, data_uri(), path=path))
    assert prediction["model_version"] == "painted 1"
    scores = [found["score"] for found in expected]
    assert prediction["score"] == pytest.approx(sum(scores) / len(scores))
    assert len({region["id"] for region in prediction["result"]}) == len(expected)
    for region, found in zip(prediction["result"], expected, strict=True):
        left, top, right, bottom = found["bbox"]
        assert (region["from_name"], region["to_name"]) == ("box", "image")
        assert (region["type"], region["image_rotation"]) == ("rectanglelabels", 0)
        assert (region["original_width"], region["original_height"]) == (64, 48)
        assert region["score"] == found["score"]
        value = region["value"]
        assert (value["rectanglelabels"], value["rotation"]) == ([labels[found["class_name"]]], 0)
        box = [value["x"], value["y"], value["width"], value["height"]]
        clipped = [max(left, 0), max(top, 0), min(right, 64), min(bottom, 48)]
        in_percent = [100 * clipped[0] / 64, 100 * clipped[1] / 48]
        in_percent += [
            100 * (clipped[2] - clipped[0]) / 64,
            100 * (clipped[3] - clipped[1]) / 48,
        ]
        assert box == pytest.approx(in_percent, abs=1e-5)


def test_boxes_are_clipped_to_the_image(server: RunningServer) -> None:
    image = encode(plain(0, 16))
    (found,) = server.client.post("/detect?top_k=1", content=image).json()["detections"]
    assert found["bbox"][0] < 0
    (prediction,) = results(predict(server, data_uri(image)))
    value = prediction["result"][0]["value"]
    assert (value["x"], value["width"]) == (0, pytest.approx(100 * found["bbox"][2] / 64))


def test_the_threshold_of_the_project(server: RunningServer) -> None:
    scores = [region["score"] for region in results(predict(server, data_uri()))[0]["result"]]
    assert len(scores) > 1
    attribute = f'toName="image" model_score_threshold="{scores[0]}"'
    config = CONFIG.replace('toName="image"', attribute)
    (prediction,) = results(predict(server, data_uri(), config=config))
    assert [region["score"] for region in prediction["result"]] == scores[:1]
    cold = '<RectangleLabels name="cold" toName="image"><Label value="Blue"/></RectangleLabels>'
    two = config.replace('"blue"', '"none"').replace("</View>", f"{cold}</View>")
    (prediction,) = results(predict(server, data_uri(), config=two))
    labels = [region["value"]["rectanglelabels"] for region in prediction["result"]]
    assert labels == [["Red"], ["Blue"]]  # the second red one is below the threshold of its tag
    config = CONFIG.replace('toName="image"', 'toName="image" model_score_threshold="0.99"')
    (nothing,) = results(predict(server, data_uri(), config=config))
    assert nothing == {"model_version": "painted 1", "score": None, "result": []}


@pytest.mark.parametrize("with_boxes", [True, False])
def test_octagons_are_polygons(start_server: StartServer, with_boxes: bool) -> None:
    server = start_server(FixedEngine(EXTREME_POINT_ROWS), make_manifest(EXTREME_POINTS))
    polygons = (
        '<PolygonLabels name="outline" toName="image"><Label value="Red"/></PolygonLabels></View>'
    )
    config = CONFIG.replace("</View>", polygons)
    if not with_boxes:
        config = config.replace("RectangleLabels", "BrushLabels")
    (found,) = server.client.post("/detect", content=IMAGE).json()["detections"]
    (prediction,) = results(predict(server, data_uri(), config=config))
    *boxes, polygon = prediction["result"]
    assert [box["id"] for box in boxes] == [polygon.get("parentID")] * with_boxes
    assert ("parentID" in polygon) == with_boxes
    assert (polygon["from_name"], polygon["type"]) == ("outline", "polygonlabels")
    assert polygon["score"] == found["score"]
    value = polygon["value"]
    assert (value["polygonlabels"], value["closed"]) == (["Red"], True)
    assert found["bbox"][2] > 64
    clipped = [[100 * min(x, 64) / 64, 100 * y / 48] for x, y in found["octagon"]]
    assert value["points"] == [pytest.approx(point, abs=1e-2) for point in clipped]


def test_keypoints_belong_to_boxes(start_server: StartServer) -> None:
    server = start_server(FixedEngine(POSE_ROWS), make_manifest(POSES))
    image = data_uri(encode(plain(9, 9)))
    found = server.client.post("/detect", content=encode(plain(9, 9))).json()["detections"]
    (prediction,) = results(predict(server, image, config=POSE_CONFIG))
    regions = prediction["result"]
    assert [region["type"] for region in regions] == 2 * [
        "rectanglelabels",
        "keypointlabels",
        "keypointlabels",
    ]
    for detection, (box, *points) in zip(found, (regions[:3], regions[3:]), strict=True):
        for name, keypoint, point in zip(
            ("nose", "tail"), detection["keypoints"], points, strict=True
        ):
            assert point["parentID"] == box["id"]
            assert point["from_name"] == "point"
            assert point["value"]["keypointlabels"] == [name]
            position = [point["value"]["x"] * 0.64, point["value"]["y"] * 0.64, point["score"]]
            assert position == pytest.approx(keypoint)
            assert point["value"]["width"] > 0
    only_points = POSE_CONFIG.replace('"Red"', '"none"').replace('"blue"', '"none"')
    (prediction,) = results(predict(server, image, config=only_points))
    assert [region["type"] for region in prediction["result"]] == ["keypointlabels"] * 4
    assert all("parentID" not in region for region in prediction["result"])


def test_keypoints_outside_of_the_image_are_left_out(start_server: StartServer) -> None:
    rows = {
        **POSE_ROWS,
        "keypoints": POSE_ROWS["keypoints"] + [[[0, -10], [0, 0]], [[0, 0], [20, 0]]],
    }
    server = start_server(FixedEngine(rows), make_manifest(POSES))
    (prediction,) = results(predict(server, data_uri(), config=POSE_CONFIG))
    labels = [next(iter(region["value"].values())) for region in prediction["result"]]
    assert labels == [["Red"], ["tail"], ["Red"], ["nose"]]


@pytest.fixture
def studio() -> Iterator[FakeLabelStudio]:
    with fake_label_studio() as running:
        running.files["/data/upload/1/a%20b.png"] = IMAGE
        yield running


@pytest.fixture
def start_connected(
    start_server: StartServer, studio: FakeLabelStudio, tmp_path: Path
) -> StartServer:
    """Start a server that may request files of the Label Studio."""

    def start(token: str = LEGACY_TOKEN, **settings: Any) -> RunningServer:
        file = tmp_path / "token"
        file.write_text(f"{token}\n")
        given = {"label_studio_url": studio.url, "label_studio_token_file": file, **settings}
        return start_server(ColourEngine(), **given)

    return start


def test_images_are_requested_from_label_studio(
    start_connected: StartServer, studio: FakeLabelStudio, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = start_connected()
    storage = "s3://bucket/a b.png"
    resolved = f"/tasks/4/resolve/?fileuri={base64.urlsafe_b64encode(storage.encode()).decode()}"
    local = "/data/local-files/?d=a.png"
    studio.files |= {resolved: IMAGE, local: IMAGE}
    upload = "/data/upload/1/a%20b.png"
    found = results(predict(server, upload, studio.url + upload, local, storage))
    (expected,) = results(predict(server, data_uri()))
    assert found == [expected] * 4
    assert sorted(studio.requests) == sorted(
        ("GET", path, f"Token {LEGACY_TOKEN}") for path in (upload, upload, local, resolved)
    )
    assert studio.url not in caplog.text


def test_a_path_of_label_studio(start_connected: StartServer, studio: FakeLabelStudio) -> None:
    server = start_connected(label_studio_url=f"{studio.url}/studio/")
    studio.files["/studio/data/upload/a.png"] = IMAGE
    addresses = ["/data/upload/a.png", "/studio/data/upload/a.png"]
    found = results(predict(server, *addresses, f"{studio.url}/studio/data/upload/a.png"))
    assert all(prediction["result"] for prediction in found)


def test_personal_tokens_are_exchanged(
    start_connected: StartServer, studio: FakeLabelStudio
) -> None:
    server = start_connected(PERSONAL_TOKEN)
    path = "/data/upload/1/a%20b.png"
    assert all(found["result"] for found in results(predict(server, path, path, path)))
    assert studio.requests == [
        ("POST", "/api/token/refresh/", ""),
        *[("GET", path, f"Bearer {ACCESS_TOKEN}")] * 3,
    ]


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:9/data/upload/a.png",
        "https://example.org/data/upload/a.png",
        "//example.org/data/upload/a.png",
        "file:///etc/hostname",
        "/etc/hostname",
        "data/upload/a.png",
        "/api/users/",
        "/data/../api/users/",
        "/data/%2e%2e/api/users/",
        "/data/..%2fapi/users/",
        "/data/a\\..\\b",
        "/tasks/1/resolve/../../../api/users/",
        "/tasks/1/resolve/x",
        "/logout?next=/data/upload/a.png",
        "azure-blob:x",
        "",
        None,
        7,
        ["/data/upload/a.png"],
    ],
)
def test_no_other_address_is_requested(
    start_connected: StartServer, studio: FakeLabelStudio, address: Any
) -> None:
    problem = assert_problem(predict(start_connected(), address), 422, "image_address")
    assert "The image of the task" in str(problem["detail"])
    assert studio.requests == []


def test_storages_need_the_number_of_the_task(
    start_connected: StartServer, studio: FakeLabelStudio
) -> None:
    task = {"id": "1/../..", "data": {"image": "s3://bucket/a.png"}}
    body = {"tasks": [task], "label_config": CONFIG}
    response = start_connected().client.post("/label-studio/predict", json=body)
    assert_problem(response, 422, "image_address")
    assert studio.requests == []


def test_nothing_is_requested_unless_label_studio_is_set(
    server: RunningServer, studio: FakeLabelStudio
) -> None:
    for address in ("/data/upload/1/a%20b.png", f"{studio.url}/data/upload/1/a%20b.png"):
        problem = assert_problem(predict(server, address), 422, "image_address")
        assert "--label-studio-url" in str(problem["detail"])
    setup = {"schema": CONFIG, "hostname": studio.url, "access_token": LEGACY_TOKEN}
    assert server.client.post("/label-studio/setup", json=setup).status_code == 200
    assert studio.requests == []


def test_redirects_are_not_followed(start_connected: StartServer, studio: FakeLabelStudio) -> None:
    studio.files["/data/upload/r"] = (303, f"{studio.url}/data/upload/1/a%20b.png")
    problem = assert_problem(
        predict(start_connected(), "/data/upload/r"), 502, "image_fetch_failed"
    )
    assert "pre-signed URLs" in str(problem["detail"])
    assert len(studio.requests) == 1


def test_failures_of_label_studio(start_connected: StartServer, studio: FakeLabelStudio) -> None:
    missing = predict(start_connected(), "/data/upload/none.png")
    assert "answered 404" in str(assert_problem(missing, 502, "image_fetch_failed")["detail"])
    refused = predict(start_connected("an.unknown.token"), "/data/upload/1/a%20b.png")
    assert "personal access token" in str(
        assert_problem(refused, 502, "image_fetch_failed")["detail"]
    )
    studio.files["/data/upload/slow"] = None
    slow = predict(start_connected(body_timeout_s=0.2), "/data/upload/slow")
    assert "within 0.2 s" in str(assert_problem(slow, 502, "image_fetch_failed")["detail"])
    unreachable = start_connected(label_studio_url="http://127.0.0.1:9")
    problem = assert_problem(predict(unreachable, "/data/a"), 502, "image_fetch_failed")
    assert "ConnectError" in str(problem["detail"])


def test_images_have_the_limits_of_bodies(
    start_connected: StartServer, studio: FakeLabelStudio
) -> None:
    studio.files["/data/large"] = encode(plain(1, 2)) + bytes(4000)
    limited = predict(start_connected(max_body_bytes=3000), "/data/large")
    assert "3000 bytes" in str(assert_problem(limited, 413, "body_too_large")["detail"])
    budget = predict(start_connected(max_upload_bytes=3000), "/data/large")
    assert_problem(budget, 429, "queue_full")


def test_tasks_that_fail_have_no_prediction(
    start_connected: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_connected()
    before = server.metric("centernet_request_errors_total", code="image_fetch_failed")
    path = "/data/upload/1/a%20b.png"
    with caplog.at_level(logging.WARNING):
        found = results(predict(server, "/data/none", path, data_uri(b"no image"), "/data/none"))
    assert [bool(prediction) for prediction in found] == [False, True, False, False]
    assert [found[0], found[2]] == [[], []]
    assert "3 of 4 tasks have no prediction" in caplog.text
    assert "answered 404" in caplog.text
    after = server.metric("centernet_request_errors_total", code="image_fetch_failed")
    assert after - before == 2


def test_errors_of_all_tasks_are_the_error_of_the_first(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        response = predict(server, data_uri(b"no image, but text"), "/data/none")
    problem = assert_problem(response, 415, "unsupported_image")
    assert str(problem["detail"]) in caplog.text


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"tasks": []}, 400, "bad_json"),
        ({"tasks": {"id": 1}}, 400, "bad_json"),
        ({"tasks": [{"id": 1}]}, 400, "bad_json"),
        ({"tasks": [{"data": {}}], "label_config": "<View/>"}, 422, "labeling_config"),
        ({"tasks": [{"data": {}}]}, 422, "labeling_config"),
        ({"tasks": [{"data": {}}], "label_config": CONFIG}, 422, "image_address"),
        ({"tasks": [0] * 100_001}, 400, "bad_json"),
    ],
)
def test_other_requests_are_refused(
    server: RunningServer, body: dict[str, Any], status: int, code: str
) -> None:
    assert_problem(server.client.post("/label-studio/predict", json=body), status, code)


def test_configurations_and_models_are_checked_at_the_set_up(server: RunningServer) -> None:
    for config in ("<View/>", CONFIG.replace("Red", "violet").replace("blue", "violet"), None):
        response = server.client.post("/label-studio/setup", json={"schema": config})
        assert_problem(response, 422, "labeling_config")
    for method, path in [("GET", "health"), ("POST", "setup"), ("POST", "webhook")]:
        response = server.client.request(method, f"/label-studio/cars/{path}", json={})
        assert_problem(response, 404, "unknown_model")
    assert_problem(server.client.get("/label-studio/predict"), 405, "method_not_allowed")


def test_events_of_annotations_are_accepted(server: RunningServer) -> None:
    for path in ("/label-studio/webhook", "/label-studio/painted/webhook"):
        body = {"action": "ANNOTATION_CREATED", "project": {"id": 1}}
        assert server.client.post(path, json=body).json() == {"status": "ok"}
        response = server.client.post(path, json={"action": "START_TRAINING"})
        assert "centernet-train" in str(assert_problem(response, 422, "invalid_option")["detail"])


def test_a_request_leaves_most_of_the_queue_to_others(start_server: StartServer) -> None:
    engine = GatedEngine()
    server = start_server(engine, max_queue_size=8)
    found: list[httpx.Response] = []
    thread = Thread(target=lambda: found.append(predict(server, *[data_uri()] * 7)))
    thread.start()
    admission = server.state.loader.models.get(None).admission
    try:
        wait_until(lambda: admission.admitted == 2)
        assert engine.entered.acquire(timeout=10)
    finally:
        engine.gate.set()
        thread.join(30)
    assert len(results(found[0])) == 7
    assert all(prediction["result"] for prediction in results(found[0]))
    assert max(engine.batch_sizes) <= 2


def test_keys_apply(start_server: StartServer, tmp_path: Path) -> None:
    key = "key-0123456789abcdef"
    (tmp_path / "keys").write_text(key)
    server = start_server(ColourEngine(), api_keys_file=tmp_path / "keys")
    assert_problem(server.client.get("/label-studio/health"), 401, "unauthorized")
    assert_problem(predict(server, data_uri()), 401, "unauthorized")
    server.client.auth = httpx.BasicAuth("label studio", key)
    assert server.client.get("/label-studio/health").status_code == 200
    assert results(predict(server, data_uri()))


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "No such file"), ("", "not a token"), ("two words", "not a token")],
)
def test_token_files_are_checked(
    bundled: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    expected: str,
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    options = ["--label-studio-url", "http://localhost:1", "--label-studio-token-file", str(file)]
    with pytest.raises(SystemExit):
        main(["--models", str(bundled), *options])
    assert expected in capsys.readouterr().err


def test_the_address_and_the_token_belong_together(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--label-studio-url", "http://localhost:1"])
    assert "belong together" in capsys.readouterr().err
