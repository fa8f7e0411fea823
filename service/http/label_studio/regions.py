"""From detections to the regions of a prediction in Label Studio's format."""

from typing import Any

import numpy as np

from labels.extreme_points import octagons
from service.decoders.types import ExtremePointDetections, PoseDetections
from service.detector import Prediction
from service.http.label_studio.labeling_config import RegionTargets, Target

_DECIMALS = 6
"""Of scores and percentages; of the latter, 0.0002 pixels in the widest image."""
_POINT_WIDTH_PERCENT = 0.5
"""Diameter of the keypoints that Label Studio draws."""


def to_regions(prediction: Prediction, targets: RegionTargets) -> list[dict[str, Any]]:
    """Return the regions of the detections, best score first, each box before its other regions.

    Positions and sizes are percentages of the upright image. Boxes and octagons are clipped to the
    image, and keypoints outside of it are left out. ``parentID`` of a keypoint or an octagon is the
    region of its box, if the project has one.
    """
    found = prediction.detections
    width_px, height_px = prediction.image_width_px, prediction.image_height_px
    boxes = (100 * found.boxes_xyxy / ([width_px, height_px] * 2)).clip(0, 100)
    poses = found if isinstance(found, PoseDetections) else None
    points = 100 * poses.keypoints / [width_px, height_px] if poses else None
    masks = octagons(found.points) if isinstance(found, ExtremePointDetections) else None
    regions: list[dict[str, Any]] = []

    def add(region_id: str, target: Target, kind: str, score: float, **value: Any) -> None:
        rounded = {name: np.round(number, _DECIMALS).tolist() for name, number in value.items()}
        regions.append(
            {
                "id": region_id,
                "from_name": target.from_name,
                "to_name": targets.image_name,
                "type": kind,
                "original_width": width_px,
                "original_height": height_px,
                "image_rotation": 0,
                "value": {kind: [target.label], **rounded},
                "score": score,
            }
        )

    # Rounded as in the native responses, so that a threshold taken from one includes it.
    scores = found.scores.astype(float).round(_DECIMALS).tolist()
    rows = zip(found.class_ids.tolist(), scores, boxes.tolist(), strict=True)
    for row, (class_id, score, (left, top, right, bottom)) in enumerate(rows):
        region_id, target = f"object-{row}", targets.boxes.get(class_id)
        parent: dict[str, str] = {}
        if target and score >= target.min_score and left < right and top < bottom:
            box = {"x": left, "y": top, "width": right - left, "height": bottom - top}
            add(region_id, target, "rectanglelabels", score, **box, rotation=0)
            parent = {"parentID": region_id}
        target = targets.octagons.get(class_id)
        if masks is not None and target and score >= target.min_score:
            corners = (100 * masks[row] / [width_px, height_px]).clip(0, 100)
            if (np.ptp(corners, axis=0) > 0).all():
                add(f"{region_id}-octagon", target, "polygonlabels", score, points=corners)
                regions[-1]["value"]["closed"] = True
                regions[-1] |= parent
        if poses is None or points is None:
            continue
        point_scores = poses.keypoint_scores[row].astype(float).round(_DECIMALS).tolist()
        for index, (x, y) in enumerate(points[row].tolist()):
            target = targets.keypoints.get((class_id, index))
            if target and score >= target.min_score and 0 <= x <= 100 and 0 <= y <= 100:
                point = {"x": x, "y": y, "width": _POINT_WIDTH_PERCENT}
                add(f"{region_id}-{index}", target, "keypointlabels", point_scores[index], **point)
                regions[-1] |= parent
    return regions
