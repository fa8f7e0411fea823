"""Keypoint errors, 3D boxes and KITTI's metrics, compared with hand calculations."""

from typing import Any

import numpy as np
import pytest

from evaluation.detections import ImageDetections
from evaluation.ground_truth import ImageLabels
from evaluation.metrics.boxes_3d import bev_and_3d_iou, box_3d_errors
from evaluation.metrics.kitti import Frame, KittiScores, kitti_scores, recall_thresholds
from evaluation.metrics.poses import keypoint_errors
from labels.kitti import KittiLabels
from service.decoders.center_boxes_3d import box_corners

CAR = [1.5, 2.0, 4.0, 3.0, 1.6, 20.0, 0.3]
"""Height, width, length, x, y, z, rotation."""
AT = [100.0, 100.0, 200.0, 160.0]
ELSEWHERE = [400.0, 100.0, 500.0, 160.0]


NAN = float("nan")


def labels_at(*boxes: list[float], keypoints: Any = None) -> ImageLabels:
    count = len(boxes)
    return ImageLabels(
        np.array(boxes).reshape(count, 4),
        np.zeros(count, np.int64),
        np.zeros(count, np.bool_),
        np.empty((count, 0, 3)) if keypoints is None else np.array(keypoints, np.float64),
    )


def detections_at(
    *boxes: list[float], scores: Any = 0.9, keypoints: Any = None, boxes_3d: Any = None
) -> ImageDetections:
    count = len(boxes)
    return ImageDetections(
        np.array(boxes).reshape(count, 4),
        np.broadcast_to(np.float64(scores), count),
        np.zeros(count, np.int64),
        np.empty((count, 0, 3)) if keypoints is None else np.array(keypoints, np.float64),
        np.empty((count, 8)) if boxes_3d is None else np.reshape(np.float64(boxes_3d), (count, 8)),
        np.empty((count, 0, 2)),
    )


def test_keypoints_by_hand() -> None:
    # The pose is 100 pixels long; the fourth keypoint is not labelled.
    ground_truth = [[0, 0, 2], [60, 80, 2], [30, 40, 1], [7, 7, 0]]
    found = [[4, 0, 1], [60, 88, 1], [30, 70, 1], [900, 900, 1]]
    image = labels_at(AT, keypoints=[ground_truth]), detections_at(AT, keypoints=[found])
    errors = keypoint_errors([image], 4)
    assert errors.pck[:, :3].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 0]]  # 5, 10, 20 pixels
    assert errors.pck[:, 4] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert np.isnan(errors.pck[:, 3]).all()
    assert errors.mean_error_px[[0, 1, 2, 4]].tolist() == [4, 8, 30, 14]
    missed = labels_at(AT, keypoints=[ground_truth]), detections_at(ELSEWHERE, keypoints=[found])
    both = keypoint_errors([image, missed], 4)
    assert both.pck[1, 4] == pytest.approx(1 / 3)
    assert both.mean_error_px[4] == 14
    assert (both.objects, both.found) == (2, 1)
    # As if it was not detected: a detection of a class without keypoints.
    without = (
        labels_at(AT, keypoints=[ground_truth]),
        detections_at(AT, keypoints=[[[NAN] * 3] * 4]),
    )
    np.testing.assert_equal(vars(keypoint_errors([image, without], 4)), vars(both))


def changed(box: list[float], **new: float) -> np.ndarray:
    names = ("height", "width", "length", "x", "y", "z", "rotation")
    return np.array([[new.get(name, value) for name, value in zip(names, box, strict=True)]])


def test_bev_and_3d_iou_by_hand() -> None:
    def iou(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
        bev, iou_3d = bev_and_3d_iou(one, other)
        return float(bev[0, 0]), float(iou_3d[0, 0])

    car = np.array([CAR])
    assert iou(car, car) == pytest.approx((1, 1))
    assert iou(car, changed(CAR, rotation=0.3 + np.pi)) == pytest.approx((1, 1))
    # A cross: 2 x 2 of 2 x 4 each.
    assert iou(car, changed(CAR, rotation=0.3 + np.pi / 2))[0] == pytest.approx(4 / 12)
    square = [1, 1, 1, 0, 0, 9, 0]
    octagon = 2 * (np.sqrt(2) - 1)
    assert iou(np.array([square], float), changed(square, rotation=np.pi / 4))[0] == (
        pytest.approx(octagon / (2 - octagon))
    )
    # Raised by half its height: a third of the union.
    assert iou(car, changed(CAR, y=1.6 - 0.75)) == pytest.approx((1, 1 / 3))
    # Moved by half its length along itself.
    along = changed(CAR, x=3 + 2 * np.cos(0.3), z=20 - 2 * np.sin(0.3))
    assert iou(car, along) == pytest.approx((1 / 3, 1 / 3))
    assert iou(car, changed(CAR, z=60)) == (0, 0)


def test_boxes_rotate_as_in_the_decoder() -> None:
    """The intersection of two footprints, counted on a grid inside the decoder's corners."""
    other = changed(CAR, rotation=1.1, x=3.7, z=20.5, length=5.0)
    grid = np.stack(np.meshgrid(np.arange(-3, 9, 0.01), np.arange(14, 26, 0.01)), -1)
    inside = []
    for box in (np.array([CAR]), other):
        corners = box_corners(box[:, :3], box[:, 3:6], box[:, 6])[0, :4][:, [0, 2]]
        middle = corners.mean(axis=0)
        within = np.ones(grid.shape[:2], np.bool_)
        for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            normal = np.array([end[1] - start[1], start[0] - end[0]])
            within &= ((grid - start) @ normal) * ((middle - start) @ normal) >= 0
        inside.append(within)
    counted = (inside[0] & inside[1]).sum() / (inside[0] | inside[1]).sum()
    bev, _ = bev_and_3d_iou(np.array([CAR]), other)
    assert bev[0, 0] == pytest.approx(counted, abs=3e-3)


def test_3d_errors_by_hand() -> None:
    found = [1.65, 1.8, 4.4, 3, 1.6, 20.5, 0.3 - 2 * np.pi + np.radians(4), 0]
    image = labels_at(AT), detections_at(AT, boxes_3d=found), np.array([CAR])
    missed = labels_at(AT), detections_at(ELSEWHERE, boxes_3d=found), np.array([CAR])
    errors = box_3d_errors([image, missed])
    assert (errors.depth, errors.height, errors.width, errors.length) == pytest.approx(
        (0.025, 0.1, 0.1, 0.1)
    )
    assert errors.rotation_deg == pytest.approx(4)
    assert (errors.objects, errors.found) == (2, 1)


def boxes_3d_labels(*rows: dict[str, Any]) -> KittiLabels:
    full = [
        {"type": "Car", "truncated": 0, "occluded": 0, "alpha": 0.5, "box": AT, "box_3d": CAR} | row
        for row in rows
    ]
    boxes_3d = np.array([row["box_3d"] for row in full], np.float64)
    return KittiLabels(
        tuple(row["type"] for row in full),
        *(np.array([row[name] for row in full], float) for name in ("truncated", "occluded")),
        np.array([row["alpha"] for row in full], np.float64),
        np.array([row["box"] for row in full], np.float64),
        boxes_3d[:, :3],
        boxes_3d[:, 3:6],
        boxes_3d[:, 6],
    )


FAR = [*CAR[:5], 60.0, CAR[6]]


def scores_of(
    *rows: dict[str, Any], boxes: Any = (AT,), boxes_3d: Any = (CAR,), scores: Any = (0.5,)
) -> KittiScores:
    """Evaluate 40 images whose scores fall by a thousandth each; detections have alpha 0.5."""
    frames = [
        Frame(
            boxes_3d_labels(*rows),
            detections_at(
                *boxes,
                scores=np.array(scores) - 0.001 * i,
                boxes_3d=[[*box, 0.5] for box in boxes_3d],
            ),
        )
        for i in range(40)
    ]
    return kitti_scores(frames, "Car", 0.7)


ALL = 39 / 40
"""40 objects reach 40 of the benchmark's 41 recall points, the first of which is not used."""


def test_recall_thresholds_by_hand() -> None:
    assert recall_thresholds([0.9], 1) == [0.9]
    assert recall_thresholds([0.1, 0.9, 0.5], 40) == [0.9, 0.5, 0.1]
    # 80 objects: after the first, every second score.
    scores = [1 - i / 100 for i in range(80)]
    assert recall_thresholds(scores, 80)[:3] == pytest.approx([1.0, 0.99, 0.97], abs=0.011)
    assert len(recall_thresholds(scores, 80)) == 41


def test_kitti_scores_by_hand() -> None:
    right = scores_of({})
    assert right.ap == dict.fromkeys(("2D", "BEV", "3D"), (ALL,) * 3)
    assert right.aos == (ALL,) * 3
    # Seen 60 degrees off, the similarity is (1 + cos 60) / 2.
    assert scores_of({"alpha": 0.5 + np.pi / 3}).aos == pytest.approx((0.75 * ALL,) * 3)
    # A false positive with a higher score in each image: the final precision is a half.
    false_positive: dict[str, Any] = {
        "boxes": (AT, ELSEWHERE),
        "boxes_3d": (CAR, FAR),
        "scores": (0.5, 0.95),
    }
    assert scores_of({}, **false_positive).ap["2D"] == pytest.approx((0.5 * ALL,) * 3)
    assert scores_of({}, **false_positive).ap["3D"] == pytest.approx((0.5 * ALL,) * 3)
    # In a DontCare region it is ignored, which applies to 2D boxes only.
    dont_care = {
        "type": "DontCare",
        "box": ELSEWHERE,
        "box_3d": [-1, -1, -1, -1000, -1000, -1000, -10],
    }
    assert scores_of({}, dont_care, **false_positive).ap["2D"] == pytest.approx((ALL,) * 3)
    assert scores_of({}, dont_care, **false_positive).ap["BEV"] == pytest.approx((0.5 * ALL,) * 3)
    # A van detected as a car is ignored; a truck is a false positive.
    van = {"type": "Van", "box": ELSEWHERE, "box_3d": FAR}
    assert scores_of({}, van, **false_positive).ap["3D"] == pytest.approx((ALL,) * 3)
    assert scores_of({}, van | {"type": "Truck"}, **false_positive).ap["3D"] == pytest.approx(
        (0.5 * ALL,) * 3
    )


@pytest.mark.parametrize(
    ("row", "levels"),
    [
        ({"occluded": 1}, (np.nan, ALL, ALL)),
        ({"occluded": 2}, (np.nan, np.nan, ALL)),
        ({"occluded": 3}, (np.nan,) * 3),
        ({"truncated": 0.4}, (np.nan, np.nan, ALL)),
        ({"box": [100.0, 100, 200, 130]}, (np.nan, ALL, ALL)),
        ({"box": [100.0, 100, 200, 120]}, (np.nan,) * 3),
    ],
)
def test_kitti_difficulties(row: dict[str, Any], levels: tuple[float, ...]) -> None:
    found = scores_of(row, boxes=(row.get("box", AT),)).ap["2D"]
    assert found == pytest.approx(levels, nan_ok=True)


def test_small_detections_are_not_false_positives() -> None:
    low = [400.0, 100.0, 500.0, 120.0]
    found = scores_of({}, boxes=(AT, low), boxes_3d=(CAR, FAR), scores=(0.5, 0.95))
    assert found.ap["2D"] == (ALL,) * 3
    # 30 pixels are too small for easy objects only.
    low[3] = 130.0
    found = scores_of({}, boxes=(AT, low), boxes_3d=(CAR, FAR), scores=(0.5, 0.95))
    assert found.ap["2D"] == pytest.approx((ALL, 0.5 * ALL, 0.5 * ALL))


def test_an_object_matched_by_a_small_detection_is_ignored() -> None:
    tall, low = [100.0, 100.0, 200.0, 141.0], [100.0, 100.0, 200.0, 139.0]
    assert scores_of({"box": tall}, boxes=(low,)).ap["2D"] == (0, ALL, ALL)
    # With another matched object and a false positive, the precision is a half, not two thirds.
    nowhere = [700.0, 100.0, 800.0, 160.0]
    found = scores_of(
        *({"box": tall}, {"box": ELSEWHERE}),
        boxes=(low, ELSEWHERE, nowhere),
        boxes_3d=(CAR, FAR, FAR),
        scores=(0.6, 0.5, 0.95),
    )
    recalls = len(recall_thresholds([0.5 - 0.001 * i for i in range(40)], 80))
    assert found.ap["2D"][0] == pytest.approx(0.5 * (recalls - 1) / 40)


def test_a_box_at_the_wrong_depth_is_a_true_positive_in_2d_only() -> None:
    found = scores_of({}, boxes_3d=(FAR,))
    assert found.ap["2D"] == (ALL,) * 3
    assert found.ap["BEV"] == found.ap["3D"] == (0,) * 3
