"""Response formats other than the native one, each against the native response to the image."""

import io
from base64 import b64encode
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from support.images import encode, plain, quadrants
from support.serving import ColourEngine, FixedEngine, RunningServer, assert_problem, make_manifest
from support.tasks import (
    BOXES_3D,
    BOXES_3D_ROWS,
    CANVAS_3D,
    EXTREME_POINT_ROWS,
    EXTREME_POINTS,
    POSE_ROWS,
    POSES,
    POSES_AND_BOXES_3D,
    POSES_AND_BOXES_3D_ROWS,
)

from client.drawing import draw_detections
from client.results import parse_result
from labels.kitti import read_kitti
from service.http import annotated_images
from service.http.annotated_images import MAX_PIXELS

Start = Callable[..., RunningServer]
IMAGE = encode(plain(200, 40))
COCO_TYPE = "application/vnd.coco.results+json"
ROBOFLOW_TYPE = "application/vnd.roboflow.predictions+json"


def post(
    server: RunningServer, query: str = "", body: bytes = IMAGE, accept: str = "*/*"
) -> httpx.Response:
    return server.client.post(f"/detect{query}", content=body, headers={"Accept": accept})


def native(server: RunningServer, query: str = "", body: bytes = IMAGE) -> Any:
    return post(server, query, body).json()


@pytest.mark.parametrize(
    ("query", "accept", "media_type"),
    [
        ("", "*/*", "application/json"),
        ("", "", "application/json"),
        ("", "application/*", "application/json"),
        ("", "text/html, */*;q=0.1", "application/json"),
        ("", "application/json, text/plain, */*", "application/json"),
        ("", "image/png, */*;q=0.5", "image/png"),
        ("", "image/*", "image/png"),
        ("", "image/png;q=0, image/*", "image/jpeg"),
        ("", "image/jpeg;q=0.9, application/json;q=0.2", "image/jpeg"),
        ("", "TEXT/PLAIN", "text/plain"),
        ("", COCO_TYPE, COCO_TYPE),
        ("", ROBOFLOW_TYPE, ROBOFLOW_TYPE),
        ("?format=json", "image/png", "application/json"),
        ("?format=coco", "text/html", COCO_TYPE),
        ("?format=kitti&top_k=1", "*/*", "text/plain"),
        ("?format=roboflow", "*/*", ROBOFLOW_TYPE),
        ("?format=png", "*/*", "image/png"),
        ("?format=jpeg", "*/*", "image/jpeg"),
    ],
)
def test_the_query_or_the_accept_header_selects_the_format(
    server: RunningServer, query: str, accept: str, media_type: str
) -> None:
    response = post(server, query, accept=accept)
    assert response.status_code == 200
    assert response.headers["Content-Type"].partition(";")[0] == media_type
    assert response.headers["X-Batch-Size"] == "1"
    assert "infer;dur=" in response.headers["Server-Timing"]


@pytest.mark.parametrize("accept", ["text/html", "image/webp, audio/*", "*/*;q=0"])
def test_returns_406_if_no_format_is_acceptable(server: RunningServer, accept: str) -> None:
    problem = assert_problem(post(server, accept=accept), 406, "not_acceptable")
    assert accept in str(problem["detail"])
    assert "image/jpeg" in str(problem["detail"])


@pytest.mark.parametrize("query", ["format=xml", "format=", "format=coco&format=kitti"])
def test_returns_422_for_an_unknown_format(server: RunningServer, query: str) -> None:
    problem = assert_problem(post(server, f"?{query}"), 422, "invalid_option")
    assert "json, coco, kitti, roboflow, png, jpeg" in str(problem["detail"])


def test_errors_are_problem_documents_in_every_format(server: RunningServer) -> None:
    for name in ("coco", "kitti", "roboflow", "png"):
        assert_problem(post(server, f"?format={name}", b"no image"), 415, "unsupported_image")


@pytest.mark.parametrize("as_form", [True, False])
def test_the_format_may_be_a_field_of_the_body(server: RunningServer, as_form: bool) -> None:
    fields = {"format": "coco", "top_k": "1"}
    if as_form:
        response = server.client.post("/detect", files={"image": IMAGE}, data=fields)
    else:
        text = b64encode(IMAGE).decode()
        response = server.client.post("/detect", json={"image": text, **fields})
    assert response.headers["Content-Type"] == COCO_TYPE
    assert len(response.json()) == 1
    twice = server.client.post("/detect?format=coco", files={"image": IMAGE}, data=fields)
    assert "Give it once" in str(assert_problem(twice, 422, "invalid_option")["detail"])


def test_pycocotools_reads_coco_results(server: RunningServer) -> None:
    found = native(server)
    results = post(server, "?format=coco").json()
    dataset = COCO()
    width, height = found["image"]["width"], found["image"]["height"]
    dataset.dataset = {
        "info": {},
        "images": [{"id": 1, "width": width, "height": height}],
        "categories": [{"id": number, "name": str(number)} for number in range(3)],
        "annotations": [],
    }
    with redirect_stdout(io.StringIO()):
        dataset.createIndex()
        loaded = dataset.loadRes(results)
    annotations = [loaded.anns[key] for key in sorted(loaded.anns)]
    assert len(annotations) == len(found["detections"]) == 5
    for annotation, detection in zip(annotations, found["detections"], strict=True):
        x, y, box_width, box_height = annotation["bbox"]
        assert [x, y, x + box_width, y + box_height] == pytest.approx(detection["bbox"])
        assert annotation["category_id"] == detection["class_id"]
        assert annotation["score"] == detection["score"]


def test_coco_results_of_a_batch_count_the_images_from_one(server: RunningServer) -> None:
    bodies = [encode(plain(red, 10)) for red in (20, 200)]
    files = [("image", ("x.png", body)) for body in bodies]
    results = server.client.post("/detect/batch?format=coco", files=files).json()
    for number, body in enumerate(bodies, 1):
        alone = post(server, "?format=coco", body).json()
        expected = [{**entry, "image_id": number} for entry in alone]
        assert [entry for entry in results if entry["image_id"] == number] == expected
    assert_problem(
        server.client.post("/detect/batch?format=png", files=files), 422, "invalid_option"
    )


def test_a_batch_in_coco_results_fails_with_its_first_damaged_image(server: RunningServer) -> None:
    files = [("image", ("x.png", body)) for body in (IMAGE, IMAGE[:60], IMAGE)]
    response = server.client.post("/detect/batch?format=coco", files=files)
    problem = assert_problem(response, 400, "bad_image")
    assert str(problem["detail"]).startswith("Image 2: ")


def test_the_kitti_reader_reads_3d_boxes(start_server: Start, tmp_path: Path) -> None:
    server = start_server(FixedEngine(BOXES_3D_ROWS), make_manifest(BOXES_3D, CANVAS_3D))
    found = native(server)["detections"]
    path = tmp_path / "000000.txt"
    path.write_text(post(server, "?format=kitti").text)
    labels = read_kitti(path)
    boxes = [detection["box3d"] for detection in found]
    assert labels.types == tuple(detection["class_name"] for detection in found)
    assert len(boxes) == 2
    for values, key in (
        (labels.dimensions_hwl, "dimensions_hwl"),
        (labels.locations, "location_xyz"),
        (labels.rotations_y, "rotation_y"),
        (labels.alphas, "alpha"),
    ):
        assert np.allclose(values, [box[key] for box in boxes], atol=1e-4)
    assert np.allclose(labels.boxes_xyxy, [one["bbox"] for one in found], atol=1e-4)
    scores = [float(line.split()[15]) for line in path.read_text().splitlines()]
    assert np.allclose(scores, [one["score"] for one in found], atol=1e-4)


def test_kitti_lines_without_3d_boxes_have_the_values_for_unknown(server: RunningServer) -> None:
    line = post(server, "?format=kitti&top_k=1").text
    (detection,) = native(server, "?top_k=1")["detections"]
    box = " ".join(f"{value:.4f}" for value in detection["bbox"])
    unknown = "-1.0000 -1.0000 -1.0000 -1000.0000 -1000.0000 -1000.0000 -10.0000"
    assert line == f"red -1 -1 -10.0000 {box} {unknown} {detection['score']:.4f}\n"


def test_roboflow_boxes_are_centers_and_sizes(start_server: Start) -> None:
    server = start_server(FixedEngine(POSE_ROWS), make_manifest(POSES))
    found = native(server)["detections"]
    response = post(server, "?format=roboflow")
    content = response.json()
    assert content["image"] == {"width": 64, "height": 64}
    assert content["inference_id"] == response.headers["X-Request-ID"]
    assert content["time"] > 0
    assert len({one["detection_id"] for one in content["predictions"]}) == len(found) > 0
    for prediction, detection in zip(content["predictions"], found, strict=True):
        x, y = prediction["x"], prediction["y"]
        half_width, half_height = prediction["width"] / 2, prediction["height"] / 2
        box = [x - half_width, y - half_height, x + half_width, y + half_height]
        assert box == pytest.approx(detection["bbox"])
        assert prediction["class"] == detection["class_name"]
        assert prediction["class_id"] == detection["class_id"]
        assert prediction["confidence"] == detection["score"]
        points = [
            [point["x"], point["y"], point["confidence"]] for point in prediction["keypoints"]
        ]
        assert points == detection["keypoints"]
        assert [point["class"] for point in prediction["keypoints"]] == ["nose", "tail"]


@pytest.mark.parametrize("name", ["png", "jpeg"])
def test_the_annotated_image_is_what_the_client_draws(start_server: Start, name: str) -> None:
    server = start_server(FixedEngine(POSE_ROWS), make_manifest(POSES))
    body = encode(quadrants(300, 200))
    expected = draw_detections(
        Image.fromarray(quadrants(300, 200)),
        parse_result(native(server, body=body)).detections,
        skeleton=[(0, 1)],
        keypoint_names=["nose", "tail"],
    )
    response = post(server, f"?format={name}", body)
    drawn = Image.open(io.BytesIO(response.content))
    assert drawn.format == name.upper()
    assert "draw;dur=" in response.headers["Server-Timing"]
    difference = np.abs(np.asarray(drawn).astype(int) - np.asarray(expected))
    assert difference.max() == 0 if name == "png" else difference.mean() < 4
    assert np.abs(np.asarray(drawn).astype(int) - quadrants(300, 200)).max() > 100


def test_every_format_has_the_keypoints_and_the_3d_boxes(start_server: Start) -> None:
    server = start_server(
        FixedEngine(POSES_AND_BOXES_3D_ROWS), make_manifest(POSES_AND_BOXES_3D, CANVAS_3D)
    )
    found = native(server)
    first = found["detections"][0]
    (coco, *_) = post(server, "?format=coco").json()
    assert coco["keypoints"] == [value for x, y, _ in first["keypoints"] for value in (x, y, 2)]
    box_3d = first["box3d"]
    kitti = [float(text) for text in post(server, "?format=kitti").text.split()[8:15]]
    expected = [*box_3d["dimensions_hwl"], *box_3d["location_xyz"], box_3d["rotation_y"]]
    assert np.allclose(kitti, expected, atol=1e-4)
    assert "keypoints" in post(server, "?format=roboflow").json()["predictions"][0]
    names = {"skeleton": [(0, 1)], "keypoint_names": ["nose", "tail"]}
    both = parse_result(found).detections
    drawn = np.asarray(Image.open(io.BytesIO(post(server, "?format=png").content)))
    for detections, is_same in (
        (both, True),
        ([replace(one, keypoints=()) for one in both], False),
        ([replace(one, box3d=None) for one in both], False),
    ):
        image = draw_detections(Image.open(io.BytesIO(IMAGE)), detections, **names)
        assert np.array_equal(drawn, np.asarray(image)) == is_same


def test_the_annotated_image_is_upright(server: RunningServer) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    body = encode(quadrants(96, 64), "PNG", exif=exif.tobytes())
    drawn = Image.open(io.BytesIO(post(server, "?format=png&score_threshold=1", body).content))
    assert np.array_equal(np.asarray(drawn), np.rot90(quadrants(96, 64), -1))


def test_a_large_annotated_image_is_reduced_with_its_boxes(server: RunningServer) -> None:
    body = encode(plain(8, 7, 30, (2400, 3200)))
    drawn = Image.open(io.BytesIO(post(server, "?format=png&top_k=1", body).content))
    assert drawn.width * drawn.height <= MAX_PIXELS
    assert drawn.width / drawn.height == pytest.approx(4 / 3, abs=0.01)
    scale = drawn.width / 3200
    (detection,) = native(server, "?top_k=1", body)["detections"]
    x1, y1, x2, _ = (scale * side for side in detection["bbox"])
    edge = np.asarray(drawn)[round(y1) + 1, round((x1 + x2) / 2)]
    assert np.abs(edge.astype(int) - (0xD5, 0x5E, 0x00)).max() < 8


def test_drawing_has_a_limit(start_server: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start_server(ColourEngine())
    monkeypatch.setattr(annotated_images, "MAX_DRAWING_S", 0.015)
    problem = assert_problem(post(server, "?format=png"), 422, "invalid_option")
    assert "Drawing 5 detections" in str(problem["detail"])
    assert post(server, "?format=png&top_k=1").status_code == 200


def test_drawing_counts_in_the_decoding_budget(start_server: Start) -> None:
    body = encode(plain(90, 60, 30, (1000, 1000)), "BMP")
    # Enough for decoding a BMP (8 bytes per pixel), not for drawing on it.
    server = start_server(ColourEngine(), max_decoding_bytes=24 << 20)
    assert post(server, body=body).status_code == 200
    problem = assert_problem(post(server, "?format=png", body), 413, "image_size")
    assert str(24 << 20) in str(problem["detail"])


def test_octagons_are_polygons_in_coco_and_roboflow(start_server: Start) -> None:
    running = start_server(FixedEngine(EXTREME_POINT_ROWS), make_manifest(EXTREME_POINTS))
    (found,) = native(running)["detections"]
    (result,) = post(running, "?format=coco").json()
    assert result["segmentation"] == [[value for point in found["octagon"] for value in point]]
    drawn = Image.open(io.BytesIO(post(running, "?format=png").content))
    image = draw_detections(Image.open(io.BytesIO(IMAGE)), parse_result(native(running)).detections)
    assert np.array_equal(np.asarray(drawn), np.asarray(image))
    (prediction,) = post(running, "?format=roboflow").json()["predictions"]
    assert [[point["x"], point["y"]] for point in prediction["points"]] == found["octagon"]
