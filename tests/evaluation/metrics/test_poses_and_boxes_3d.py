"""Keypoints in pixels, 3D boxes and KITTI's benchmark, worked out by hand."""

from typing import Any

import numpy as np
import pytest

from evaluation.detections import Answer
from evaluation.ground_truth import Boxes3DLabels, ImageLabels
from evaluation.metrics.boxes_3d import box_3d_errors, overlaps_3d
from evaluation.metrics.kitti import Frame, KittiScores, kitti_scores, recall_thresholds
from evaluation.metrics.poses import keypoint_errors
from service.decoders.center_boxes_3d import box_corners

CAR = [1.5, 2.0, 4.0, 3.0, 1.6, 20.0, 0.3]
"""Height, width, length, x, y, z, rotation."""
AT = [100.0, 100.0, 200.0, 160.0]
ELSEWHERE = [400.0, 100.0, 500.0, 160.0]


def labels_at(*boxes: list[float], keypoints: Any = None) -> ImageLabels:
    count = len(boxes)
    return ImageLabels(
        np.array(boxes).reshape(count, 4),
        np.zeros(count, np.int64),
        np.zeros(count, np.bool_),
        np.empty((count, 0, 3)) if keypoints is None else np.array(keypoints, np.float64),
    )


def answer_at(
    *boxes: list[float], scores: Any = 0.9, keypoints: Any = None, space: Any = None
) -> Answer:
    count = len(boxes)
    return Answer(
        np.array(boxes).reshape(count, 4),
        np.broadcast_to(np.float64(scores), count),
        np.zeros(count, np.int64),
        np.empty((count, 0, 3)) if keypoints is None else np.array(keypoints, np.float64),
        np.empty((count, 8)) if space is None else np.array(space, np.float64).reshape(count, 8),
    )


def test_keypoints_by_hand() -> None:
    # The body is 100 pixels long; the fourth keypoint is not labelled.
    ground_truth = [[0, 0, 2], [60, 80, 2], [30, 40, 1], [7, 7, 0]]
    found = [[4, 0, 1], [60, 88, 1], [30, 70, 1], [900, 900, 1]]
    image = labels_at(AT, keypoints=[ground_truth]), answer_at(AT, keypoints=[found])
    errors = keypoint_errors([image], 4)
    assert errors.pck[:, :3].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 0]]  # 5, 10, 20 pixels
    assert errors.pck[:, 4] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert np.isnan(errors.pck[:, 3]).all()
    assert errors.mean_error_px[[0, 1, 2, 4]].tolist() == [4, 8, 30, 14]
    missed = labels_at(AT, keypoints=[ground_truth]), answer_at(ELSEWHERE, keypoints=[found])
    both = keypoint_errors([image, missed], 4)
    assert both.pck[1, 4] == pytest.approx(1 / 3)
    assert both.mean_error_px[4] == 14
    assert (both.objects, both.found) == (2, 1)


def turned(box: list[float], **new: float) -> np.ndarray:
    names = ("height", "width", "length", "x", "y", "z", "rotation")
    return np.array([[new.get(name, value) for name, value in zip(names, box, strict=True)]])


def test_overlaps_in_3d_by_hand() -> None:
    def overlap(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
        above, whole = overlaps_3d(one, other)
        return float(above[0, 0]), float(whole[0, 0])

    car = np.array([CAR])
    assert overlap(car, car) == pytest.approx((1, 1))
    assert overlap(car, turned(CAR, rotation=0.3 + np.pi)) == pytest.approx((1, 1))
    # A cross: 2 x 2 of 2 x 4 each.
    assert overlap(car, turned(CAR, rotation=0.3 + np.pi / 2))[0] == pytest.approx(4 / 12)
    square = [1, 1, 1, 0, 0, 9, 0]
    octagon = 2 * (np.sqrt(2) - 1)
    assert overlap(np.array([square], float), turned(square, rotation=np.pi / 4))[0] == (
        pytest.approx(octagon / (2 - octagon))
    )
    # Raised by half its height: a third of the joined space.
    assert overlap(car, turned(CAR, y=1.6 - 0.75)) == pytest.approx((1, 1 / 3))
    # Moved by half its length along itself.
    along = turned(CAR, x=3 + 2 * np.cos(0.3), z=20 - 2 * np.sin(0.3))
    assert overlap(car, along) == pytest.approx((1 / 3, 1 / 3))
    assert overlap(car, turned(CAR, z=60)) == (0, 0)


def test_boxes_turn_as_the_service_draws_them() -> None:
    """The shared ground of two boxes, counted on a grid inside the decoder's own corners."""
    other = turned(CAR, rotation=1.1, x=3.7, z=20.5, length=5.0)
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
    above, _ = overlaps_3d(np.array([CAR]), other)
    assert above[0, 0] == pytest.approx(counted, abs=3e-3)


def test_errors_in_3d_by_hand() -> None:
    found = [1.65, 1.8, 4.4, 3, 1.6, 20.5, 0.3 - 2 * np.pi + np.radians(4), 0]
    image = labels_at(AT), answer_at(AT, space=found), np.array([CAR])
    missed = labels_at(AT), answer_at(ELSEWHERE, space=found), np.array([CAR])
    errors = box_3d_errors([image, missed])
    assert (errors.depth, errors.height, errors.width, errors.length) == pytest.approx(
        (0.025, 0.1, 0.1, 0.1)
    )
    assert errors.rotation_deg == pytest.approx(4)
    assert (errors.objects, errors.found) == (2, 1)


def boxes_3d_labels(*rows: dict[str, Any]) -> Boxes3DLabels:
    full = [
        {"type": "Car", "truncated": 0, "occluded": 0, "alpha": 0.5, "box": AT, "space": CAR} | row
        for row in rows
    ]
    space = np.array([row["space"] for row in full], np.float64)
    return Boxes3DLabels(
        tuple(row["type"] for row in full),
        *(np.array([row[name] for row in full], float) for name in ("truncated", "occluded")),
        np.array([row["alpha"] for row in full], np.float64),
        np.array([row["box"] for row in full], np.float64),
        space[:, :3],
        space[:, 3:6],
        space[:, 6],
    )


FAR = [*CAR[:5], 60.0, CAR[6]]


def evaluated(
    *rows: dict[str, Any], boxes: Any = (AT,), spaces: Any = (CAR,), scores: Any = (0.5,)
) -> KittiScores:
    """40 equal images but for scores that fall by a thousandth; detections see alpha 0.5."""
    frames = [
        Frame(
            boxes_3d_labels(*rows),
            answer_at(
                *boxes,
                scores=np.array(scores) - 0.001 * i,
                space=[[*space, 0.5] for space in spaces],
            ),
        )
        for i in range(40)
    ]
    return kitti_scores(frames, "Car", 0.7)


ALL = 39 / 40
"""40 objects give 40 of the benchmark's 41 recalls, the first of which does not count."""


def test_recalls_by_hand() -> None:
    assert recall_thresholds([0.9], 1) == [0.9]
    assert recall_thresholds([0.1, 0.9, 0.5], 40) == [0.9, 0.5, 0.1]
    # 80 objects: after the first, every second score.
    scores = [1 - i / 100 for i in range(80)]
    assert recall_thresholds(scores, 80)[:3] == pytest.approx([1.0, 0.99, 0.97], abs=0.011)
    assert len(recall_thresholds(scores, 80)) == 41


def test_kitti_by_hand() -> None:
    right = evaluated({})
    assert right.ap == dict.fromkeys(("2D", "BEV", "3D"), (ALL,) * 3)
    assert right.aos == (ALL,) * 3
    # Seen 60 degrees off, the similarity is (1 + cos 60) / 2.
    assert evaluated({"alpha": 0.5 + np.pi / 3}).aos == pytest.approx((0.75 * ALL,) * 3)
    # One wrong box per image with a better score: at the end every second one is right.
    wrong: dict[str, Any] = {
        "boxes": (AT, ELSEWHERE),
        "spaces": (CAR, FAR),
        "scores": (0.5, 0.95),
    }
    assert evaluated({}, **wrong).ap["2D"] == pytest.approx((0.5 * ALL,) * 3)
    assert evaluated({}, **wrong).ap["3D"] == pytest.approx((0.5 * ALL,) * 3)
    # It may lie where nobody labelled, which is known in the image only.
    nobody = {"type": "DontCare", "box": ELSEWHERE, "space": [-1, -1, -1, -1000, -1000, -1000, -10]}
    assert evaluated({}, nobody, **wrong).ap["2D"] == pytest.approx((ALL,) * 3)
    assert evaluated({}, nobody, **wrong).ap["BEV"] == pytest.approx((0.5 * ALL,) * 3)
    # A van is no car, but taking it for one is no mistake; a truck is.
    van = {"type": "Van", "box": ELSEWHERE, "space": FAR}
    assert evaluated({}, van, **wrong).ap["3D"] == pytest.approx((ALL,) * 3)
    assert evaluated({}, van | {"type": "Truck"}, **wrong).ap["3D"] == pytest.approx(
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
def test_kitti_s_difficulties(row: dict[str, Any], levels: tuple[float, ...]) -> None:
    found = evaluated(row, boxes=(row.get("box", AT),)).ap["2D"]
    assert found == pytest.approx(levels, nan_ok=True)


def test_low_detections_are_not_wrong() -> None:
    low = [400.0, 100.0, 500.0, 120.0]
    found = evaluated({}, boxes=(AT, low), spaces=(CAR, FAR), scores=(0.5, 0.95))
    assert found.ap["2D"] == (ALL,) * 3
    # 30 pixels are low for easy objects only.
    low[3] = 130.0
    found = evaluated({}, boxes=(AT, low), spaces=(CAR, FAR), scores=(0.5, 0.95))
    assert found.ap["2D"] == pytest.approx((ALL, 0.5 * ALL, 0.5 * ALL))


def test_an_object_found_by_a_low_detection_is_neither_found_nor_missed() -> None:
    tall, low = [100.0, 100.0, 200.0, 141.0], [100.0, 100.0, 200.0, 139.0]
    assert evaluated({"box": tall}, boxes=(low,)).ap["2D"] == (0, ALL, ALL)
    # Beside an object that is found and a wrong box: half of what counts is right, not two thirds.
    nowhere = [700.0, 100.0, 800.0, 160.0]
    found = evaluated(
        *({"box": tall}, {"box": ELSEWHERE}),
        boxes=(low, ELSEWHERE, nowhere),
        spaces=(CAR, FAR, FAR),
        scores=(0.6, 0.5, 0.95),
    )
    recalls = len(recall_thresholds([0.5 - 0.001 * i for i in range(40)], 80))
    assert found.ap["2D"][0] == pytest.approx(0.5 * (recalls - 1) / 40)


def test_a_box_far_off_in_depth_is_right_in_the_image_only() -> None:
    found = evaluated({}, spaces=(FAR,))
    assert found.ap["2D"] == (ALL,) * 3
    assert found.ap["BEV"] == found.ap["3D"] == (0,) * 3
