"""Typed results, their arrays, and the encoding of images."""

import builtins
import dataclasses
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.images import encode, plain, quadrants
from support.serving import FixedEngine, RunningServer, make_manifest
from support.tasks import BOXES_3D, BOXES_3D_ROWS, CANVAS_3D, POSE_ROWS, POSES

from client import Client, ClientError, ImageInputError
from client.formats import coco_result
from client.images import encode_image

IMAGE = encode(plain(8, 6))


def test_boxes_and_arrays(server: RunningServer) -> None:
    with Client(server.url) as client:
        result = client.detect(IMAGE, top_k=3)
        empty = client.detect(IMAGE, score_threshold=1)
    first = result.detections[0]
    assert (first.class_name, first.score, first.bbox) == ("red", 0.9, (28, 20, 36, 28))
    assert (result.model, result.width, result.height) == ("painted", 64, 64)
    assert first.keypoints == ()
    assert first.box3d is None
    assert result.boxes_xyxy.shape == (3, 4)
    assert result.boxes_xyxy[0].tolist() == [28, 20, 36, 28]
    assert result.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert (result.class_ids.dtype, result.class_ids.tolist()) == (np.int64, [0, 1, 2])
    assert empty.detections == ()
    assert (empty.boxes_xyxy.shape, empty.scores.shape) == ((0, 4), (0,))
    assert empty.keypoints.shape == (0, 0, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.model = "other"  # type: ignore[misc]


def test_poses_and_their_model(start_server: Callable[..., RunningServer]) -> None:
    server = start_server(FixedEngine(POSE_ROWS), make_manifest(POSES))
    with Client(server.url) as client:
        result = client.detect(IMAGE)
        model = client.get_model()
    assert result.keypoints.shape == (2, 2, 3)
    nose = result.detections[0].keypoints[0]
    assert (nose.x, nose.y, nose.score) == tuple(result.keypoints[0, 0]) == (32, 20, 0.75)
    assert (model.keypoints, model.skeleton) == (("nose", "tail"), ((0, 1),))
    assert model.raw["manifest"]["name"] == "painted"


def test_classes_without_keypoints_have_none(start_server: Callable[..., RunningServer]) -> None:
    decoder = POSES.model_copy(update={"keypoint_class_ids": (2,)})
    rows = {**POSE_ROWS, "class_ids": np.int32([0, 2])}
    server = start_server(FixedEngine(rows), make_manifest(decoder))
    with Client(server.url) as client:
        result = client.detect(IMAGE)
    first, second = result.detections
    assert "keypoints" not in result.raw["detections"][0]
    assert first.keypoints == ()
    assert len(second.keypoints) == 2
    assert np.isnan(result.keypoints[0]).all()
    assert result.keypoints[1].tolist() == [list(point) for point in second.keypoints]
    assert "keypoints" not in coco_result(first, 1)


def test_boxes_3d(start_server: Callable[..., RunningServer]) -> None:
    server = start_server(FixedEngine(BOXES_3D_ROWS), make_manifest(BOXES_3D, CANVAS_3D))
    with Client(server.url) as client:
        result = client.detect(IMAGE, projection=[50, 0, -18, 0, 0, 50, 32, 0, 0, 0, 1, 0])
    box, behind = (detection.box3d for detection in result.detections)
    assert box is not None
    assert behind is not None
    assert box.dimensions_hwl == (2, 3, 4)
    assert box.location_xyz == (20, 1, 20)
    assert len(box.corners_px) == 8
    assert behind.corners_px == (), "a corner is behind the camera"


def test_supervision(server: RunningServer) -> None:
    supervision = pytest.importorskip("supervision")
    with Client(server.url) as client:
        result = client.detect(IMAGE, top_k=2)
        empty = client.detect(IMAGE, score_threshold=1)
    detections = result.to_supervision()
    assert isinstance(detections, supervision.Detections)
    assert detections.xyxy.tolist()[0] == [28, 20, 36, 28]
    assert detections.class_id.tolist() == [0, 1]
    assert detections["class_name"].tolist() == ["red", "green"]
    assert len(detections[detections.confidence > 0.85]) == 1
    assert len(empty.to_supervision()) == 0


def test_packages_that_are_not_installed_are_named(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(server.url) as client:
        result = client.detect(IMAGE)
    missing = {"supervision", "numpy", "PIL"}
    import_module = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.partition(".")[0] in missing:
            raise ImportError(name)
        return import_module(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install supervision"):
        result.to_supervision()
    with pytest.raises(ImportError, match="pip install numpy"):
        _ = result.scores
    with pytest.raises(ImageInputError, match="Pillow, which is not installed"):
        encode_image(plain(1, 1))


@pytest.mark.parametrize("pixels", [quadrants(), quadrants()[..., 0]], ids=["rgb", "grey"])
def test_arrays_and_pil_images_are_sent_without_loss(pixels: np.ndarray) -> None:
    for image in (pixels, Image.fromarray(pixels)):
        with Image.open(io.BytesIO(encode_image(image))) as sent:
            assert sent.format == "PNG"
            assert np.array_equal(np.asarray(sent), pixels)


def test_the_orientation_of_a_pil_image_is_applied_once(server: RunningServer) -> None:
    image = Image.fromarray(quadrants(96, 64))
    exif = image.getexif()
    exif[0x0112] = 6
    rotated = Image.open(io.BytesIO(encode(image, "JPEG", exif=exif, quality=95)))
    with Client(server.url) as client:
        result = client.detect(rotated)
    assert (result.width, result.height) == (64, 96)
    assert not result.raw["image"]["orientation_applied"]
    with Image.open(io.BytesIO(encode_image(rotated))) as sent:
        expected = np.rot90(quadrants(96, 64), -1).astype(int)
        assert np.abs(np.asarray(sent).astype(int) - expected)[10:30, 10:20].max() < 20


@pytest.mark.parametrize("mode", ["1", "P", "RGBA", "LA", "CMYK", "I;16", "F"])
def test_every_mode_of_pil_is_accepted_by_the_service(mode: str, server: RunningServer) -> None:
    image = Image.new("I;16", (64, 64), 9) if mode == "I;16" else Image.new("RGB", (64, 64))
    with Client(server.url) as client:
        assert client.detect(image.convert(mode) if mode != "I;16" else image).width == 64


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_arrays_that_are_not_images_are_refused(image: Any) -> None:
    with pytest.raises(ClientError, match=r"Give uint8 pixels"):
        encode_image(image)
