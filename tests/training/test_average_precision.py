import numpy as np
import pytest
import torch

from model_export.graph.normalization import NORMALIZATIONS
from training.average_precision import average_precision, decode_boxes, evaluate
from training.data.sample import AnnotatedImage
from training.targets.centers import center_targets

CLASSES = ("RBC", "WBC")


def images() -> list[AnnotatedImage]:
    blank = np.zeros((480, 640, 3), np.uint8)
    boxes = np.array([[60, 80, 100, 120], [300, 200, 50, 40]], np.float32)
    return [
        AnnotatedImage(blank, boxes, np.array([0, 1])),
        AnnotatedImage(blank, boxes[:1], np.array([1])),
    ]


def perfect_maps(image: AnnotatedImage, scale: float) -> dict[str, torch.Tensor]:
    targets = center_targets(
        image.boxes_xywh * np.float32(scale),
        image.class_ids,
        num_classes=2,
        map_height=72,
        map_width=96,
        stride=4,
        max_objects=8,
    )
    maps = {
        "heatmap": torch.from_numpy(targets.heatmap)[None].clamp(1e-4, 1 - 1e-4).logit(),
        "size": torch.zeros(1, 2, 72, 96),
        "offset": torch.zeros(1, 2, 72, 96),
    }
    for cell, size, offset in zip(targets.cells, targets.size, targets.offset, strict=True):
        maps["size"][0, :, cell // 96, cell % 96] = torch.from_numpy(size)
        maps["offset"][0, :, cell // 96, cell % 96] = torch.from_numpy(offset)
    return maps


class PerfectNetwork(torch.nn.Module):
    """Returns perfect maps for one image after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = iter([perfect_maps(image, 0.6) for image in images()])

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        assert batch.shape == (1, 3, 288, 384)
        return next(self.maps)


def test_perfect_maps_score_one() -> None:
    result = evaluate(PerfectNetwork(), images(), CLASSES, (384, 288), NORMALIZATIONS["coco"])
    assert result.ap == pytest.approx(1.0)
    assert result.ap50_per_class == {"RBC": pytest.approx(1.0), "WBC": pytest.approx(1.0)}


def test_decoding_returns_the_drawn_boxes() -> None:
    rows = decode_boxes(perfect_maps(images()[0], 1 / 2))[0]
    rows = rows[rows[:, 4] > 0.9].sort(dim=0).values
    torch.testing.assert_close(rows[0, :4], torch.tensor([30.0, 40.0, 80.0, 100.0]))
    torch.testing.assert_close(rows[1, :4], torch.tensor([150.0, 100.0, 175.0, 120.0]))


def test_a_class_without_labels_does_not_count() -> None:
    labelled = [images()[1]]
    detections = [np.array([[60.0, 80.0, 160.0, 200.0, 0.9, 1.0]])]
    result = average_precision(labelled, detections, CLASSES)
    assert result.ap == pytest.approx(1.0)
    assert np.isnan(result.ap50_per_class["RBC"])
