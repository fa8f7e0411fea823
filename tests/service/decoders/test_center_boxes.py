"""Decoding of boxes from center points."""

import numpy as np

from model_package import CenterBoxesDecoder
from service.decoders import ModelOutput
from service.decoders.center_boxes import CenterBoxes
from service.decoders.types import DetectionOptions
from service.imaging.geometry import AffineTransform, ImageTransform

CONFIG = CenterBoxesDecoder(output_stride=4, top_k=4, score_threshold=0.3)
ROWS = {
    "scores": np.array([0.9, 0.5, 0.5, 0.1], np.float32),
    "class_ids": np.array([2, 0, 1, 2], np.int32),
    "centers": np.array([[10, 20], [0.5, 0], [1, 1], [2, 2]], np.float32),
    "sizes": np.array([[4, 8], [1, 1], [-2, 3], [1, 1]], np.float32),
}
SCALE_1 = ModelOutput(ROWS, ImageTransform(128, 64, 64, 64, AffineTransform(0.5, 0, 16)))


def decode(options: DetectionOptions) -> list[list[float]]:
    detections = CenterBoxes(CONFIG).decode([SCALE_1], options)
    assert len(detections) == len(detections.boxes_xyxy) == len(detections.class_ids)
    return detections.boxes_xyxy.tolist()


def test_boxes_are_centers_and_sizes_in_image_pixels() -> None:
    detections = CenterBoxes(CONFIG).decode([SCALE_1], DetectionOptions(0.0, 4))
    # Center (10, 20) cells = (40, 80) input pixels = (80, 128) in the image; size 32 x 64 there.
    assert detections.boxes_xyxy[0].tolist() == [64, 96, 96, 160]
    # Negative sizes of the network are passed on, as in the reference implementation.
    assert detections.boxes_xyxy[2].tolist() == [16, -36, 0, -12]
    assert detections.class_ids.tolist() == [2, 0, 1, 2]
    assert detections.scores.dtype == np.float32


def test_options_filter_by_score_class_and_top_k() -> None:
    everything = decode(DetectionOptions(0.0, 4))
    assert decode(DetectionOptions(0.5, 4)) == everything[:3]
    assert decode(DetectionOptions(0.95, 4)) == []
    assert decode(DetectionOptions(0.0, 2)) == everything[:2]
    assert decode(DetectionOptions(0.0, 4, frozenset({2}))) == [everything[0], everything[3]]
    assert decode(DetectionOptions(0.0, 1, frozenset({1, 2}))) == [everything[0]]
    assert decode(DetectionOptions(0.0, 4, frozenset())) == []


def test_merges_scales_by_score_with_and_without_soft_nms() -> None:
    # The same image at test scale 2: the same object, and one detected only at that scale.
    rows_at_scale_2 = {
        "scores": np.array([0.8, 0.7], np.float32),
        "class_ids": np.array([2, 1], np.int32),
        "centers": np.array([[20, 36], [20, 36]], np.float32),
        "sizes": np.array([[8, 16], [8, 16]], np.float32),
    }
    scale_2 = ModelOutput(
        rows_at_scale_2, ImageTransform(256, 128, 64, 64, AffineTransform(0.5, 0, 16), 2.0)
    )
    plain, decayed = (
        CenterBoxes(CONFIG).decode([SCALE_1, scale_2], DetectionOptions(0.3, 4, soft_nms=soft_nms))
        for soft_nms in (False, True)
    )
    assert plain.scores.tolist() == np.float32([0.9, 0.8, 0.7, 0.5]).tolist()
    assert plain.boxes_xyxy[:3].tolist() == [[64, 96, 96, 160]] * 3
    # The second box of the same class and position decays by exp(-1 / 0.5), below the threshold.
    assert decayed.scores.tolist() == np.float32([0.9, 0.7, 0.5, 0.5]).tolist()
    assert decayed.class_ids.tolist() == [2, 1, 0, 1]
