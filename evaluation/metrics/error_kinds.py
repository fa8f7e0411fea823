"""Errors by kind, and the AP that each costs (*TIDE*, Bolya et al. 2020, section 2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.detections import ImageDetections, to_coco_results
from evaluation.ground_truth import GroundTruth, ImageLabels, annotations_by_image
from evaluation.metrics.coco import box_ap50
from evaluation.metrics.matching import MIN_IOU, match_detections
from labels.matching import box_iou

KINDS: Mapping[str, str] = {
    "classification": "IoU of at least 0.5 with an object of another class",
    "localization": "IoU from 0.1 to 0.5 with an object of its class",
    "both": "IoU from 0.1 to 0.5 with an object of another class",
    "duplicate": "IoU of at least 0.5 with an object that a higher score has detected",
    "background": "IoU below 0.1 with every object",
    "missed": "an object without a detection, even with a wrong class or box",
}
"""All kinds of errors, in TIDE's order; each error is of one kind."""
_NO_ERROR, _CLASSIFICATION, _LOCALIZATION, _BOTH, _DUPLICATE, _BACKGROUND = range(-1, 5)
_BACKGROUND_IOU = 0.1


@dataclass(frozen=True)
class ImageErrors:
    """The errors of one image.

    Attributes:
        kinds: int64 (detections,), an index into :data:`KINDS`; -1 for true positives, and for
            detections in a crowd.
        objects: int64 (detections,), the row of the label that a detection with a wrong class or
            box is on; -1 for all others.
        matched: bool (labels,), detected objects.
        missed: rows of the missed objects.
    """

    kinds: NDArray[np.int64]
    objects: NDArray[np.int64]
    matched: NDArray[np.bool_]
    missed: NDArray[np.int64]

    def counts(self) -> dict[str, int]:
        """Return the number of errors of each kind."""
        numbers = [int((self.kinds == index).sum()) for index in range(len(KINDS) - 1)]
        return dict(zip(KINDS, [*numbers, len(self.missed)], strict=True))


def find_errors(labels: ImageLabels, detections: ImageDetections) -> ImageErrors:
    """Determine the kind of every error in one image; detections are in descending score."""
    matches = match_detections(labels, detections, same_class=True)
    iou = box_iou(labels.boxes_xyxy, detections.boxes_xyxy)
    iou[labels.is_crowd] = 0
    is_same = labels.class_ids[:, None] == detections.class_ids
    kinds = np.full(len(detections), _NO_ERROR)
    objects = np.full(len(detections), -1)
    if len(labels.class_ids):
        of_class, of_others = np.where(is_same, iou, 0), np.where(is_same, 0, iou)
        best, best_other = of_class.max(axis=0), of_others.max(axis=0)
        conditions = [
            (best >= _BACKGROUND_IOU) & (best < MIN_IOU),
            best_other >= MIN_IOU,
            best >= MIN_IOU,
            np.maximum(best, best_other) < _BACKGROUND_IOU,
        ]
        choices = [_LOCALIZATION, _CLASSIFICATION, _DUPLICATE, _BACKGROUND]
        positives = matches.false_positives
        kinds[positives] = np.select(conditions, choices, _BOTH)[positives]
        is_localization, is_classification = kinds == _LOCALIZATION, kinds == _CLASSIFICATION
        objects[is_localization] = of_class.argmax(axis=0)[is_localization]
        objects[is_classification] = of_others.argmax(axis=0)[is_classification]
    else:
        kinds[matches.false_positives] = _BACKGROUND
    matched = np.zeros(len(labels.class_ids), np.bool_)
    matched[matches.pairs[:, 0]] = True
    return ImageErrors(kinds, objects, matched, np.setdiff1d(matches.false_negatives, objects))


def correct_detections(
    labels: ImageLabels, detections: ImageDetections, errors: ImageErrors, kind: int
) -> ImageDetections:
    """Return the detections of one image with all errors of ``kind`` corrected.

    A detection with a wrong class or box receives those of its object, if the object is not
    detected and no such detection of it has a higher score. All others are removed.
    """
    kept = errors.kinds != kind
    class_ids, boxes = detections.class_ids.copy(), detections.boxes_xyxy.copy()
    best_of: dict[int, int] = {}
    for row in np.flatnonzero(errors.objects >= 0).tolist():
        best_of.setdefault(int(errors.objects[row]), row)
    for label, row in best_of.items():
        if errors.kinds[row] == kind and not errors.matched[label]:
            kept[row] = True
            class_ids[row], boxes[row] = labels.class_ids[label], labels.boxes_xyxy[label]
    return replace(detections, class_ids=class_ids, boxes_xyxy=boxes)[kept]


def corrected_ap_gains(
    ground_truth: GroundTruth,
    labels: Sequence[ImageLabels],
    detections: Sequence[ImageDetections],
) -> dict[str, float]:
    """Return by how much AP50 rises if all errors of one kind are corrected, for each kind.

    Also ``false positives``, without all of them, and ``false negatives``, without all objects that
    are not detected. A class of which no object is left does not count in the mean. The AP is that
    of :func:`evaluation.metrics.coco.box_ap50`. Errors count down to the lowest score.
    """
    image_ids = [image.image_id for image in ground_truth.images]
    images = list(zip(labels, detections, strict=True))
    errors = [find_errors(*image) for image in images]

    def ap50(corrected: Sequence[ImageDetections], coco: Mapping[str, Any]) -> float:
        return box_ap50(coco, to_coco_results(corrected, image_ids))

    def without(rows: Sequence[NDArray[np.int64]]) -> dict[str, Any]:
        by_image = annotations_by_image(ground_truth)
        removed = {
            annotations[row]["id"]
            for annotations, image_rows in zip(by_image, rows, strict=True)
            for row in image_rows.tolist()
        }
        kept = [one for one in ground_truth.coco["annotations"] if one["id"] not in removed]
        return {**ground_truth.coco, "annotations": kept}

    aps = {}
    for index, name in enumerate(list(KINDS)[:-1]):
        corrected = [
            correct_detections(*image, found, index)
            for image, found in zip(images, errors, strict=True)
        ]
        aps[name] = ap50(corrected, ground_truth.coco)
    aps["missed"] = ap50(detections, without([one.missed for one in errors]))
    correct = [one[found.kinds == _NO_ERROR] for one, found in zip(detections, errors, strict=True)]
    aps["false positives"] = ap50(correct, ground_truth.coco)
    undetected = [
        np.flatnonzero(~found.matched & ~one.is_crowd)
        for one, found in zip(labels, errors, strict=True)
    ]
    aps["false negatives"] = ap50(detections, without(undetected))
    base = ap50(detections, ground_truth.coco)
    return {name: value - base for name, value in aps.items()}
