"""Decoding of center points."""

import numpy as np

from model_package import CenterBoxesDecoder
from service.decoders import ModelOutput
from service.decoders.center_boxes import CenterBoxes
from service.decoders.types import DetectionOptions
from service.imaging.geometry import AffineTransform, ImageTransform

FACTS = CenterBoxesDecoder(output_stride=4, top_k=4, score_threshold=0.3)
ROW = {
    "scores": np.array([0.9, 0.5, 0.5, 0.1], np.float32),
    "class_ids": np.array([2, 0, 1, 2], np.int32),
    "centers": np.array([[10, 20], [0.5, 0], [1, 1], [2, 2]], np.float32),
    "sizes": np.array([[4, 8], [1, 1], [-2, 3], [1, 1]], np.float32),
}
HALF = ModelOutput(ROW, ImageTransform(128, 64, 64, 64, AffineTransform(0.5, 0, 16)))


def decode(options: DetectionOptions) -> list[list[float]]:
    found = CenterBoxes(FACTS).decode([HALF], options)
    assert len(found) == len(found.boxes_xyxy) == len(found.class_ids)
    return found.boxes_xyxy.tolist()


def test_boxes_are_centers_and_sizes_in_image_pixels() -> None:
    found = CenterBoxes(FACTS).decode([HALF], DetectionOptions(0.0, 4))
    # Center (10, 20) cells = (40, 80) input pixels = (80, 128) in the image; size 32 x 64 there.
    assert found.boxes_xyxy[0].tolist() == [64, 96, 96, 160]
    # A negative size is what the network said: like the authors, it is passed on.
    assert found.boxes_xyxy[2].tolist() == [16, -36, 0, -12]
    assert found.class_ids.tolist() == [2, 0, 1, 2]
    assert found.scores.dtype == np.float32


def test_threshold_classes_and_count() -> None:
    everything = decode(DetectionOptions(0.0, 4))
    assert decode(DetectionOptions(0.5, 4)) == everything[:3]
    assert decode(DetectionOptions(0.95, 4)) == []
    assert decode(DetectionOptions(0.0, 2)) == everything[:2]
    assert decode(DetectionOptions(0.0, 4, frozenset({2}))) == [everything[0], everything[3]]
    assert decode(DetectionOptions(0.0, 1, frozenset({1, 2}))) == [everything[0]]
    assert decode(DetectionOptions(0.0, 4, frozenset())) == []


def test_several_views_are_joined_best_first_with_or_without_soft_nms() -> None:
    # The same image at the double size: the same object, and one that only shows there.
    at_double_size = {
        "scores": np.array([0.8, 0.7], np.float32),
        "class_ids": np.array([2, 1], np.int32),
        "centers": np.array([[20, 36], [20, 36]], np.float32),
        "sizes": np.array([[8, 16], [8, 16]], np.float32),
    }
    double = ModelOutput(
        at_double_size, ImageTransform(256, 128, 64, 64, AffineTransform(0.5, 0, 16), 2.0)
    )
    one, both = (
        CenterBoxes(FACTS).decode([HALF, double], DetectionOptions(0.3, 4, soft_nms=soft_nms))
        for soft_nms in (False, True)
    )
    assert one.scores.tolist() == np.float32([0.9, 0.8, 0.7, 0.5]).tolist()
    assert one.boxes_xyxy[:3].tolist() == [[64, 96, 96, 160]] * 3
    # The second of the same class and place is lowered by exp(-1 / 0.5), below the threshold.
    assert both.scores.tolist() == np.float32([0.9, 0.7, 0.5, 0.5]).tolist()
    assert both.class_ids.tolist() == [2, 1, 0, 1]
