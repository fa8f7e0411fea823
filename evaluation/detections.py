"""Detections of one image as arrays, which need less than a tenth of the memory of the JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ImageDetections:
    """The detections of one image, in descending order of score.

    Attributes:
        boxes_xyxy: float64 (n, 4) in pixels of the upright image.
        scores: float64 (n,).
        class_ids: int64 (n,).
        keypoints: float64 (n, keypoints, 3), x, y, score; (n, 0, 3) for models without keypoints,
            NaN for classes without.
        boxes_3d: float64 (n, 8), height, width, length, x, y, z (metres), rotation_y, alpha
            (radians); (n, 0) for models without 3D boxes.
        octagons: float64 (n, 8, 2) in pixels; (n, 0, 2) for models without octagons.
    """

    boxes_xyxy: NDArray[np.float64]
    scores: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    keypoints: NDArray[np.float64]
    boxes_3d: NDArray[np.float64]
    octagons: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: NDArray[np.generic] | slice) -> "ImageDetections":
        return ImageDetections(
            self.boxes_xyxy[rows],
            self.scores[rows],
            self.class_ids[rows],
            self.keypoints[rows],
            self.boxes_3d[rows],
            self.octagons[rows],
        )

    def filter_by_score(self, min_score: float) -> "ImageDetections":
        """Return the detections with a score of at least ``min_score``."""
        return self[self.scores >= min_score]


def read_detections(
    detections: Sequence[Mapping[str, Any]],
    *,
    keypoint_count: int = 0,
    is_3d: bool = False,
    has_octagons: bool = False,
) -> ImageDetections:
    """Read the field ``detections`` of the service's response.

    ``keypoint_count``: keypoints of the model per object; ``is_3d``: the model detects 3D boxes;
    ``has_octagons``: it detects extreme points.
    """
    count = len(detections)
    none = np.full((keypoint_count, 3), np.nan)
    keypoints = [one.get("keypoints", none) if keypoint_count else () for one in detections]
    boxes_3d = [_box_3d(one["box3d"]) if is_3d else () for one in detections]
    octagons = [one["octagon"] if has_octagons else () for one in detections]
    return ImageDetections(
        np.array([one["bbox"] for one in detections], np.float64).reshape(count, 4),
        np.array([one["score"] for one in detections], np.float64),
        np.array([one["class_id"] for one in detections], np.int64),
        np.array(keypoints, np.float64).reshape(count, keypoint_count, 3),
        np.array(boxes_3d, np.float64).reshape(count, 8 if is_3d else 0),
        np.array(octagons, np.float64).reshape(count, 8 if has_octagons else 0, 2),
    )


def _box_3d(box: Mapping[str, Any]) -> tuple[float, ...]:
    return (*box["dimensions_hwl"], *box["location_xyz"], box["rotation_y"], box["alpha"])


def to_coco_results(
    detections: Sequence[ImageDetections], image_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Convert to COCO's result format, with class ids as category ids."""
    results = []
    for image_id, image_detections in zip(image_ids, detections, strict=True):
        keypoints, octagons = image_detections.keypoints, image_detections.octagons
        columns = zip(
            image_detections.class_ids.tolist(),
            image_detections.scores.tolist(),
            image_detections.boxes_xyxy.tolist(),
            keypoints.reshape(len(keypoints), 3 * keypoints.shape[1]).tolist(),
            image_detections.boxes_3d.tolist(),
            octagons.reshape(len(octagons), 2 * octagons.shape[1]).tolist(),
            strict=True,
        )
        for class_id, score, (x1, y1, x2, y2), points, box_3d, octagon in columns:
            result = {
                "image_id": image_id,
                "category_id": class_id,
                "score": score,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            }
            if points and not math.isnan(points[0]):
                result["keypoints"] = points
            if box_3d:
                result["box_3d"] = box_3d
            if octagon:
                result["segmentation"] = [octagon]
            results.append(result)
    return results


def from_coco_results(
    results: Sequence[Mapping[str, Any]],
    image_ids: Sequence[int],
    *,
    keypoint_count: int,
    is_3d: bool,
) -> list[ImageDetections]:
    """Read the detections of each image from COCO's result format, without octagons.

    See :func:`to_coco_results`.

    Raises :class:`ValueError` for missing values, and :class:`KeyError` for an unknown image.
    """
    by_image: dict[int, list[Mapping[str, Any]]] = {image_id: [] for image_id in image_ids}
    for result in results:
        by_image[result["image_id"]].append(result)
    return [_from_results(rows, keypoint_count, is_3d) for rows in by_image.values()]


def _from_results(
    results: Sequence[Mapping[str, Any]], keypoint_count: int, is_3d: bool
) -> ImageDetections:
    ordered = sorted(results, key=lambda result: -result["score"])
    count = len(ordered)
    boxes = np.array([one["bbox"] for one in ordered], np.float64).reshape(count, 4)
    none = np.full(3 * keypoint_count, np.nan)
    keypoints = [one.get("keypoints", none) if keypoint_count else () for one in ordered]
    boxes_3d = [one.get("box_3d", ()) if is_3d else () for one in ordered]
    return ImageDetections(
        np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]),
        np.array([one["score"] for one in ordered], np.float64),
        np.array([one["category_id"] for one in ordered], np.int64),
        np.array(keypoints, np.float64).reshape(count, keypoint_count, 3),
        np.array(boxes_3d, np.float64).reshape(count, 8 if is_3d else 0),
        np.empty((count, 0, 2)),
    )
