"""Detections in the formats of other tools; shared by ``centernet-detect`` and the service."""

from collections.abc import Sequence
from typing import Any

from client.results import Detection

_DECIMALS = 3
"""Coordinates of responses are multiples of 0.001 pixels."""


def coco_result(detection: Detection, image_id: Any) -> dict[str, Any]:
    """Return an entry of a COCO results list, as ``pycocotools.coco.COCO.loadRes`` reads it.

    The category id is the class id: the index into the classes of the model. Boxes are x, y, width
    and height in pixels. Keypoints are x, y and 2 (visible): models predict no visibility. The
    segmentation is the polygon of the octagon.
    """
    x1, y1, x2, y2 = detection.bbox
    result: dict[str, Any] = {
        "image_id": image_id,
        "category_id": detection.class_id,
        "bbox": [x1, y1, round(x2 - x1, _DECIMALS), round(y2 - y1, _DECIMALS)],
        "score": detection.score,
    }
    if detection.keypoints:
        points = [(point.x, point.y, 2) for point in detection.keypoints]
        result["keypoints"] = [value for point in points for value in point]
    if detection.octagon:
        result["segmentation"] = [[value for point in detection.octagon for value in point]]
    return result


def coco_annotation(detection: Detection, identifier: int, image_id: Any) -> dict[str, Any]:
    """Return the annotation of a COCO dataset for a detection, with its score."""
    x1, y1, x2, y2 = detection.bbox
    annotation = {
        "id": identifier,
        **coco_result(detection, image_id),
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
    }
    if detection.keypoints:
        annotation["num_keypoints"] = len(detection.keypoints)
    return annotation


def coco_categories(
    classes: Sequence[str], keypoints: Sequence[str], skeleton: Sequence[tuple[int, int]]
) -> list[dict[str, Any]]:
    """Return the categories of a COCO dataset; ``skeleton``: pairs of indices of keypoints."""
    categories: list[dict[str, Any]] = [
        {"id": class_id, "name": name} for class_id, name in enumerate(classes)
    ]
    if keypoints:
        # COCO counts keypoints from 1.
        edges = [[start + 1, end + 1] for start, end in skeleton]
        for category in categories:
            category |= {"keypoints": list(keypoints), "skeleton": edges}
    return categories


def kitti_line(detection: Detection) -> str:
    """Return a line of a KITTI result file, with its end.

    Unknown fields have KITTI's values for it: -1 for truncation and occlusion, and without a 3D box
    -10 for the angles, -1 for the dimensions and -1000 for the location. Spaces in the name of the
    class are underscores.
    """
    box = detection.box3d
    alpha, rest = -10.0, (-1.0, -1.0, -1.0, -1000.0, -1000.0, -1000.0, -10.0)
    if box is not None:
        alpha, rest = box.alpha, (*box.dimensions_hwl, *box.location_xyz, box.rotation_y)
    values = (alpha, *detection.bbox, *rest, detection.score)
    name = detection.class_name.replace(" ", "_")
    return f"{name} -1 -1 " + " ".join(f"{value:.4f}" for value in values) + "\n"
