import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from labels.errors import DatasetError
from model_export.graph.normalization import NORMALIZATIONS
from training.data.augmentation import AugmentationRanges, Canvas
from training.data.coco import network_input, read_coco_split
from training.dataset import SampleSettings, TrainingDataset

CLASSES = ("RBC", "WBC")


def coco_document() -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 64, "height": 48},
            {"id": 9, "file_name": "a.png", "width": 64, "height": 48},
        ],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 4, "bbox": [1, 2, 30, 20]},
            {"id": 2, "image_id": 9, "category_id": 3, "bbox": [0, 0, 0, 0]},
        ],
        "categories": [{"id": 4, "name": "WBC"}, {"id": 3, "name": "RBC"}],
    }


@pytest.fixture
def write(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), pixels)

    def to_file(content: dict[str, Any]) -> Path:
        path = tmp_path / "split.json"
        path.write_text(json.dumps(content))
        return path

    return to_file


def test_classes_follow_the_config_and_empty_boxes_are_skipped(write, tmp_path: Path) -> None:
    split = read_coco_split(write(coco_document()), tmp_path, CLASSES)
    assert [len(image.class_ids) for image in split.images] == [0, 1]
    assert split.images[1].class_ids.tolist() == [1]
    np.testing.assert_array_equal(split.images[1].boxes_xywh, [[1, 2, 30, 20]])
    assert split.images[0].boxes_xywh.shape == (0, 4)


def test_pixels_are_rgb(write, tmp_path: Path) -> None:
    split = read_coco_split(write(coco_document()), tmp_path, CLASSES)
    bgr = cv2.imread(str(tmp_path / "a.png"))
    np.testing.assert_array_equal(split.images[0].pixels, bgr[..., ::-1])


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (lambda d: d.pop("categories"), "no categories"),
        (lambda d: d["images"].clear(), "lists no images"),
        (lambda d: d["categories"].pop(), r"categories are \['WBC'\], expected"),
        (lambda d: d["annotations"][0].update(image_id=1), "annotation 1: image 1 is not listed"),
        (lambda d: d["annotations"][0].update(category_id=1), "category 1 is not listed"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 3]), "not four finite numbers"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, float("nan"), 3]), "not four finite"),
        (lambda d: d["annotations"][0].update(bbox=[64, 2, 9, 9]), "lies outside the image"),
        (lambda d: d["images"][0].update(file_name="b.png"), "is missing or not an image"),
        (lambda d: d["images"][0].update(width=65), "is 64x48, but .* says 65x48"),
    ],
)
def test_invalid_files_raise_errors_that_name_the_cause(
    write, tmp_path: Path, corrupt, message: str
) -> None:
    content = coco_document()
    corrupt(content)
    with pytest.raises(DatasetError, match=message):
        read_coco_split(write(content), tmp_path, CLASSES)


def test_a_file_that_is_not_json_raises(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text("{")
    with pytest.raises(DatasetError, match="cannot be read as JSON"):
        read_coco_split(path, tmp_path, CLASSES)


def test_network_input_is_normalized_bgr() -> None:
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[..., 0] = 255  # red
    coco = NORMALIZATIONS["coco"]
    tensor = network_input(pixels, coco)
    assert tensor.shape == (3, 2, 3)
    assert tensor.dtype == torch.float32
    expected = [(value - coco.mean[i]) / coco.std[i] for i, value in enumerate((0.0, 0.0, 1.0))]
    torch.testing.assert_close(tensor[:, 0, 0], torch.tensor(expected))


def test_samples_depend_on_seed_epoch_and_index_only() -> None:
    settings = SampleSettings(
        canvas_for=lambda _width, _height: Canvas(96, 96, 0.3),
        ranges=AugmentationRanges((0.8, 1.3), 0.1, 0.1, 0.1, 5.0, 0.5),
        normalization=NORMALIZATIONS["coco"],
        num_classes=3,
        task="boxes",
        output_stride=4,
    )

    def sample(epoch: int) -> torch.Tensor:
        views = TrainingDataset([], repeats=0, rendered=2, settings=settings, seed=1, epoch=epoch)
        assert len(views) == 2
        return views[1]["image"]

    torch.testing.assert_close(sample(3), sample(3), rtol=0, atol=0)
    assert (sample(3) != sample(4)).any()
