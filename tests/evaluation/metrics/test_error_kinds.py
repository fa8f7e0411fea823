"""Kinds of errors and their gains on cases with known results."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.labelled import detections, ground_truth, labels

from evaluation.metrics.error_kinds import (
    KINDS,
    correct_detections,
    corrected_ap_gains,
    find_errors,
)

OBJECT, OTHER = [0.0, 0.0, 10.0, 10.0], [100.0, 0.0, 110.0, 10.0]
HALF, TENTH = [0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 10.0, 1.0]
OVERLAPPING = [0.0, 0.0, 10.0, 3.0]
NOWHERE = [50.0, 50.0, 60.0, 60.0]


def kinds(found: Any) -> list[str]:
    names = [*KINDS, "correct"]
    return [names[kind] for kind in found.kinds]


def test_each_kind_by_hand() -> None:
    image = labels((OBJECT, 0), (OTHER, 1))
    found = find_errors(
        image,
        detections(
            (OBJECT, 0),
            (OBJECT, 0),
            (HALF, 1),
            (OVERLAPPING, 0),
            (OVERLAPPING, 1),
            (NOWHERE, 0),
        ),
    )
    assert kinds(found) == [
        *("correct", "duplicate", "classification", "localization", "both", "background"),
    ]
    assert found.objects.tolist() == [-1, -1, 0, 0, -1, -1]
    assert found.matched.tolist() == [True, False]
    assert found.missed.tolist() == [1]
    assert found.counts() == dict.fromkeys(KINDS, 1)


@pytest.mark.parametrize(
    ("box", "class_id", "kind"),
    [
        (HALF, 0, "correct"),  # IoU 0.5
        ([0.0, 0.0, 10.0, 4.9], 0, "localization"),
        (TENTH, 0, "localization"),  # IoU 0.1
        ([0.0, 0.0, 10.0, 0.9], 0, "background"),
        (HALF, 1, "classification"),
        ([0.0, 0.0, 10.0, 4.9], 1, "both"),
        (TENTH, 1, "both"),
        ([0.0, 0.0, 10.0, 0.9], 1, "background"),
    ],
)
def test_limits_of_the_kinds(box: list[float], class_id: int, kind: str) -> None:
    assert kinds(find_errors(labels((OBJECT, 0)), detections((box, class_id)))) == [kind]


def test_objects_with_a_wrong_class_or_box_are_not_missed_and_crowds_are_no_errors() -> None:
    crowd = [0.0, 0.0, 200.0, 200.0]
    image = labels((crowd, 0), (OTHER, 1), crowd=0)
    found = find_errors(image, detections((NOWHERE, 0), (OTHER, 0), ([100, 0, 110, 4], 1)))
    # The second lies in the crowd of its class, too.
    assert kinds(found) == ["correct", "correct", "localization"]
    assert found.missed.tolist() == []
    assert kinds(find_errors(labels(), detections((OBJECT, 0)))) == ["background"]
    assert find_errors(labels((OBJECT, 0)), detections()).missed.tolist() == [0]


def test_corrections_give_an_undetected_object_to_the_highest_score_only() -> None:
    image = labels((OBJECT, 0), (OTHER, 0))
    found = detections((OBJECT, 0), (OTHER, 1), (OTHER, 1), (OBJECT, 1), (NOWHERE, 0))
    corrected = correct_detections(image, found, find_errors(image, found), 0)
    assert corrected.class_ids.tolist() == [0, 0, 0]
    assert corrected.boxes_xyxy.tolist() == [OBJECT, OTHER, NOWHERE]
    assert corrected.scores == pytest.approx([0.9, 0.8, 0.5])


def gains(*images: tuple[Any, Any]) -> dict[str, float]:
    image_labels, image_detections = zip(*images, strict=True)
    return corrected_ap_gains(ground_truth(image_labels, classes=2), image_labels, image_detections)


def test_costs_by_hand() -> None:
    """One class of four objects; the recalls from 0 to 0.25 are 26 of 101, 0.26 to 0.5 25."""
    four = [[100.0 * i, 0.0, 100.0 * i + 10, 10.0] for i in range(4)]
    image = labels(*((box, 0) for box in four))
    shifted = [200.0, 0.0, 210.0, 4.0]
    found = detections((NOWHERE, 0), (four[0], 0), (four[1], 0), (shifted, 0), (four[0], 0))
    assert kinds(find_errors(image, found)) == [
        *("background", "correct", "correct", "localization", "duplicate"),
    ]
    base = 51 * 2 / 3 / 101  # two of three are correct up to recall 0.5
    expected = {
        "classification": 0.0,
        "localization": 76 * 3 / 4 / 101 - base,  # three of four up to recall 0.75
        "both": 0.0,
        "duplicate": 0.0,  # it comes last
        "background": 51 / 101 - base,
        "missed": 67 * 2 / 3 / 101 - base,  # two of three objects: up to recall 0.66
        "false positives": 51 / 101 - base,
        "false negatives": 101 * 2 / 3 / 101 - base,
    }
    assert gains((image, found)) == pytest.approx(expected)


def test_a_wrong_class_costs_both_classes() -> None:
    image = labels((OBJECT, 0), (OTHER, 1))
    result = gains((image, detections((OBJECT, 1), (OTHER, 1))))
    # Class 0 is not found, and class 1 has a precision of 1/2.
    assert result["classification"] == pytest.approx(1 - (0 + 0.5) / 2)
    assert result["missed"] == 0


def test_labels_are_not_modified() -> None:
    image = labels((OBJECT, 0), (OTHER, 0))
    dataset = ground_truth([image], classes=2)
    before = [dict(one) for one in dataset.coco["annotations"]]
    corrected_ap_gains(dataset, [image], [detections((NOWHERE, 0))])
    assert dataset.coco["annotations"] == before
    assert dataset.images[0].path == Path("0.png")
    assert np.array_equal(image.class_ids, [0, 0])
