"""What a model says about one image, as arrays: less than a tenth of the JSON's memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Answer:
    """The detections of one image, best score first.

    ``boxes_xyxy``: float64 (n, 4) in pixels of the upright image; ``scores``: float64 (n,);
    ``class_ids``: int64 (n,); ``keypoints``: float64 (n, keypoints, 3) x, y, score; ``space``:
    float64 (n, 8) height, width, length, x, y, z (metres), rotation_y, alpha (radians). The last
    two have no columns where the task has none.
    """

    boxes_xyxy: NDArray[np.float64]
    scores: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    keypoints: NDArray[np.float64]
    space: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: NDArray[np.generic] | slice) -> "Answer":
        return Answer(
            self.boxes_xyxy[rows],
            self.scores[rows],
            self.class_ids[rows],
            self.keypoints[rows],
            self.space[rows],
        )

    def shown(self, threshold: float) -> "Answer":
        """The detections with at least that score."""
        return self[self.scores >= threshold]


def read_answer(
    detections: Sequence[Mapping[str, Any]], *, keypoint_count: int = 0, is_3d: bool = False
) -> Answer:
    """Read the ``detections`` of the answer of a model that finds so many keypoints, or 3D boxes."""
    count = len(detections)
    keypoints = [found["keypoints"] if keypoint_count else () for found in detections]
    space = [_boxes_3d(found["box3d"]) if is_3d else () for found in detections]
    return Answer(
        np.array([found["bbox"] for found in detections], np.float64).reshape(count, 4),
        np.array([found["score"] for found in detections], np.float64),
        np.array([found["class_id"] for found in detections], np.int64),
        np.array(keypoints, np.float64).reshape(count, keypoint_count, 3),
        np.array(space, np.float64).reshape(count, 8 if is_3d else 0),
    )


def _boxes_3d(box: Mapping[str, Any]) -> tuple[float, ...]:
    return (*box["dimensions_hwl"], *box["location_xyz"], box["rotation_y"], box["alpha"])


def as_coco_rows(answers: Sequence[Answer], image_ids: Sequence[int]) -> list[dict[str, Any]]:
    """COCO's result format; category ids are class ids."""
    rows = []
    for image_id, answer in zip(image_ids, answers, strict=True):
        columns = zip(
            answer.class_ids.tolist(),
            answer.scores.tolist(),
            answer.boxes_xyxy.tolist(),
            answer.keypoints.reshape(len(answer), -1).tolist(),
            answer.space.tolist(),
            strict=True,
        )
        for class_id, score, (x1, y1, x2, y2), keypoints, space in columns:
            row = {
                "image_id": image_id,
                "category_id": class_id,
                "score": score,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            }
            if keypoints:
                row["keypoints"] = keypoints
            if space:
                row["space"] = space
            rows.append(row)
    return rows
