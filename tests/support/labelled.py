"""Labels and detections of hand-made cases."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.detections import ImageDetections
from evaluation.ground_truth import GroundTruth, ImageLabels, LabelledImage


def labels(*rows: tuple[Sequence[float], int], crowd: int | None = None) -> ImageLabels:
    """Boxes x1, y1, x2, y2 with their class ids; row ``crowd`` is a crowd."""
    count = len(rows)
    return ImageLabels(
        np.array([box for box, _ in rows], np.float64).reshape(count, 4),
        np.array([class_id for _, class_id in rows], np.int64),
        np.arange(count) == (-1 if crowd is None else crowd),
        np.empty((count, 0, 3)),
    )


def detections(*rows: tuple[Sequence[float], int]) -> ImageDetections:
    """Best score first: 0.9, 0.8 ..."""
    boxes = labels(*rows)
    scores = 0.9 - np.arange(len(rows)) / 10
    empty = np.empty((len(rows), 0))
    return ImageDetections(
        boxes.boxes_xyxy,
        scores,
        boxes.class_ids,
        boxes.keypoints,
        empty,
        np.empty((len(rows), 0, 2)),
    )


def ground_truth(images: Sequence[ImageLabels], classes: int) -> GroundTruth:
    """Labels as a COCO dataset, with images that do not exist."""
    annotations = []
    for image_id, image in enumerate(images):
        rows = zip(image.boxes_xyxy.tolist(), image.class_ids, image.is_crowd, strict=True)
        for (x1, y1, x2, y2), class_id, is_crowd in rows:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(class_id),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(is_crowd),
                }
            )
    coco = {
        "images": [{"id": image_id} for image_id in range(len(images))],
        "annotations": annotations,
        "categories": [{"id": index, "name": f"class {index}"} for index in range(classes)],
    }
    listed = [LabelledImage(image_id, Path(f"{image_id}.png")) for image_id in range(len(images))]
    return GroundTruth(listed, coco)
