"""Drawings of the images with the most errors, and of those in which two runs differ most."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from client import Detection, Keypoint
from client.results import Box3D
from evaluation.detections import ImageDetections
from evaluation.ground_truth import ImageLabels, LabelledImage
from evaluation.metrics.boxes_3d import bev_and_3d_iou, matched_boxes_3d
from evaluation.metrics.error_kinds import find_errors
from evaluation.metrics.matching import match_detections
from evaluation.metrics.poses import image_keypoint_errors
from evaluation.model_under_test import ModelUnderTest
from reports.drawings import draw_side_by_side
from reports.page import Drawing, Section

WORST = 6
_RANGE_STEP_M, _MAX_RANGE_M = 20, 100


def worst_images(
    images: Sequence[LabelledImage],
    labels: Sequence[ImageLabels],
    detections: Sequence[ImageDetections],
    model: ModelUnderTest,
    boxes_3d: Sequence[NDArray[np.float64]] | None = None,
) -> Section:
    """Draw the images with the lowest F1 at the model's threshold, then with the most errors.

    Images of equal F1 are in the order of the mean error of their keypoints, or of 1 - IoU of their
    3D boxes. ``detections``: those at the threshold; ``boxes_3d``: the labelled 3D boxes of each
    image (n, 7), which belong to the labels that are not crowds. Images without errors are omitted.
    """
    ranks = []
    for index, (one, found) in enumerate(zip(labels, detections, strict=True)):
        matches = match_detections(one, found, same_class=True)
        errors = len(matches.false_negatives) + len(matches.false_positives)
        task_error = (
            _pose_error(one, found)
            if boxes_3d is None
            else _box_3d_error(one, found, boxes_3d[index])
        )
        if errors or task_error:
            ranks.append((matches.f1, -task_error, -errors, index))
    drawings = []
    for f1, task_error, _, index in sorted(ranks)[:WORST]:
        facts = [f"{images[index].path.name}: F1 {f1:.2f}"]
        if task_error:
            unit = "of the size of the pose" if boxes_3d is None else "1 - 3D IoU"
            facts.append(f"mean error {-task_error:.3f} ({unit})")
        counts = find_errors(labels[index], detections[index]).counts()
        facts += [f"{count} {kind}" for kind, count in counts.items() if count]
        labelled = _as_detections(labels[index], None if boxes_3d is None else boxes_3d[index])
        sides = labelled, detections[index]
        drawings.append(_draw(", ".join(facts), images[index], sides, model))
    note = (
        "Left: labels, without crowds. Right: detections at the model's score threshold. "
        "The images with the lowest F1 come first."
        if drawings
        else "No image has an error at the model's score threshold."
    )
    return Section("Worst images", drawings, note)


def differing_images(
    images: Sequence[LabelledImage],
    labels: Sequence[ImageLabels],
    reference: Sequence[ImageDetections],
    detections: Sequence[ImageDetections],
    model: ModelUnderTest,
) -> Section:
    """Draw the images with the most detections that only one of two runs has.

    A detection is in both runs if the other one has a detection of the same class at the same
    place: matched one to one, with an IoU of at least 0.5. ``reference``, ``detections``: those of
    the two runs at the threshold.
    """
    differences = {}
    for index, (before, after) in enumerate(zip(reference, detections, strict=True)):
        matches = match_detections(_as_labels(before), after, same_class=True)
        sides = before[matches.false_negatives], after[matches.false_positives]
        if any(map(len, sides)):
            differences[index] = sides
    ranked = sorted(differences.items(), key=lambda item: _rank_of_difference(*item[1]))
    drawings = []
    for index, (removed, added) in ranked[:WORST]:
        before_f1, after_f1 = (
            match_detections(labels[index], run[index], same_class=True).f1
            for run in (reference, detections)
        )
        caption = (
            f"{images[index].path.name}: {len(removed)} only in the reference, {len(added)} only "
            f"in this run, F1 {before_f1:.3f} and {after_f1:.3f}"
        )
        drawings.append(_draw(caption, images[index], (removed, added), model))
    note = (
        f"Detections at the score threshold {model.score_threshold:g} without one of the same "
        "class at the same place (IoU of at least 0.5) in the other run. Left: those of the "
        f"reference. Right: those of this run. {len(ranked)} of {len(images)} images have any; "
        "those with the most come first, then those with the highest scores."
        if drawings
        else "Both runs have the same detections at the model's score threshold: of the same "
        "classes and at the same places (IoU of at least 0.5)."
    )
    return Section("Images that differ most", drawings, note)


def _rank_of_difference(removed: ImageDetections, added: ImageDetections) -> tuple[int, float]:
    scores = np.concatenate([removed.scores, added.scores])
    return -len(scores), -float(scores.max())


def _as_labels(detections: ImageDetections) -> ImageLabels:
    return ImageLabels(
        detections.boxes_xyxy,
        detections.class_ids,
        np.zeros(len(detections), np.bool_),
        detections.keypoints,
    )


def _pose_error(labels: ImageLabels, detections: ImageDetections) -> float:
    """Return the mean error of the detected keypoints, relative to the pose; 0 without any."""
    keypoint_count = detections.keypoints.shape[1]
    if labels.keypoints.shape[1] != keypoint_count:
        return 0.0
    relative = [
        errors / size
        for errors, size in image_keypoint_errors(labels, detections, keypoint_count)
        if np.isfinite(errors).any()
    ]
    return float(np.nanmean(relative)) if relative else 0.0


def _box_3d_error(
    labels: ImageLabels, detections: ImageDetections, boxes: NDArray[np.float64]
) -> float:
    """Return the mean of 1 - 3D IoU of the detected objects; 0 without any."""
    ious = [
        bev_and_3d_iou(label[None], detected[None])[1].item()
        for label, detected in matched_boxes_3d(labels, detections, boxes)
    ]
    return 1 - float(np.mean(ious)) if ious else 0.0


def _as_detections(labels: ImageLabels, boxes_3d: NDArray[np.float64] | None) -> ImageDetections:
    """Return the labels without crowds, with score 1; keypoints without a label are NaN."""
    is_object = ~labels.is_crowd
    count = int(is_object.sum())
    if boxes_3d is None:
        boxes_3d = np.empty((count, 0))
    return ImageDetections(
        labels.boxes_xyxy[is_object],
        np.ones(count),
        labels.class_ids[is_object],
        np.where(labels.keypoints[..., 2:] > 0, labels.keypoints, np.nan)[is_object],
        boxes_3d,
        np.empty((count, 0, 2)),
    )


def _draw(
    caption: str,
    image: LabelledImage,
    sides: Sequence[ImageDetections],
    model: ModelUnderTest,
) -> Drawing:
    with Image.open(image.path) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGB")
    range_m = None
    depths = np.concatenate([one.boxes_3d[:, 5:6].ravel() for one in sides])
    if sides[0].boxes_3d.shape[1]:
        steps = np.ceil(depths.max(initial=1.0) / _RANGE_STEP_M)
        range_m = float(min(steps * _RANGE_STEP_M, _MAX_RANGE_M))
    return draw_side_by_side(
        caption,
        upright,
        [_to_client(one, model.classes) for one in sides],
        skeleton=model.skeleton,
        keypoint_names=model.keypoints,
        range_m=range_m,
    )


def _to_client(detections: ImageDetections, classes: Sequence[str]) -> list[Detection]:
    boxes_3d = [_to_box_3d(row) if row else None for row in detections.boxes_3d.tolist()]
    return [
        Detection(
            class_id=int(class_id),
            class_name=classes[class_id],
            score=float(score),
            bbox=tuple(box.tolist()),
            keypoints=tuple(Keypoint(*point) for point in points.tolist()),
            box3d=box_3d,
        )
        for class_id, score, box, points, box_3d in zip(
            detections.class_ids,
            detections.scores,
            detections.boxes_xyxy,
            detections.keypoints,
            boxes_3d,
            strict=True,
        )
    ]


def _to_box_3d(row: Sequence[float]) -> Box3D:
    """Convert a row of :attr:`ImageDetections.boxes_3d`, or one of labels, without ``alpha``."""
    height, width, length, x, y, z, rotation_y, *_ = row
    return Box3D((height, width, length), (x, y, z), rotation_y, alpha=0.0, depth=z)
