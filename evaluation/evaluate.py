"""Compute all metrics of a model from its detections and the ground truth."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.detections import ImageDetections, to_coco_results
from evaluation.ground_truth import GroundTruth, ImageLabels, labels_by_image
from evaluation.metrics.boxes_3d import box_3d_errors, to_boxes_3d
from evaluation.metrics.coco import (
    CocoScores,
    box_scores,
    false_discovery,
    mask_scores,
    pose_scores,
)
from evaluation.metrics.error_kinds import corrected_ap_gains, find_errors
from evaluation.metrics.kitti import (
    DIFFICULTIES,
    Frame,
    compared_ious,
    kitti_scores,
    official_iou,
)
from evaluation.metrics.matching import confusion_matrix, match_detections
from evaluation.metrics.poses import PCK_THRESHOLDS, keypoint_errors
from evaluation.metrics.thresholds import ScoredDetections
from evaluation.model_under_test import IN_FLIGHT, DetectionRun, ModelUnderTest
from evaluation.report import Report
from evaluation.sections import (
    class_table,
    confusion_section,
    count_by_size,
    error_section,
    recall_curves,
    score_section,
    size_section,
)
from evaluation.worst_images import worst_images
from reports.page import Cell, Section, Table

_RATES = "1 - AP at IoU 0.05, 0.10 ... 0.50 (Keypoint Triplets, section 3.1), in percent."


KittiMetrics = dict[str, dict[str, dict[str, list[float]]]]
"""AP and AOS for each difficulty, by class, IoU and kind."""


def evaluate(
    model: ModelUnderTest,
    ground_truth: GroundTruth,
    run: DetectionRun,
    task: str,
    sigmas: NDArray[np.float64] | None,
) -> Report:
    """Compute all metrics of ``task`` and return the report.

    ``ground_truth``: with the model's class ids, see
    :func:`evaluation.ground_truth.map_to_classes`; ``sigmas``: those of the keypoints, or None.
    """
    detections = run.detections
    labels = labels_by_image(ground_truth)
    threshold = model.score_threshold
    thresholded = [one.filter_by_score(threshold) for one in detections]
    pairs = list(zip(labels, thresholded, strict=True))
    results = to_coco_results(detections, [image.image_id for image in ground_truth.images])
    report = Report(
        f"{model.name} {model.version} on {len(ground_truth.images)} images",
        [
            f"{task}, {model.reached}, {model.engine}",
            f"{sum(len(one.class_ids) for one in labels)} labels, {len(results)} detections",
            f"score threshold of the model: {threshold:g}",
        ],
        metrics={
            "model": asdict(model),
            "task": task,
            "images": len(ground_truth.images),
            "labels_sha256": labels_digest(ground_truth),
        },
        detections=results,
    )
    scored = _scored_detections(labels, detections, model.classes)
    scores = box_scores(ground_truth.coco, results)
    gains = corrected_ap_gains(ground_truth, labels, detections)
    by_class = class_table(scores, scored, threshold)
    _add_summary(report, "boxes", "Boxes (COCO)", scores, by_class)
    curves, similarity = scores, "IoU"
    if task == "poses":
        _add_keypoints(report, pairs, model)
        if sigmas is None:
            report.sections.append(_NO_SIGMAS)
        else:
            curves, similarity = pose_scores(ground_truth.coco, results, sigmas), "OKS"
            _add_summary(report, "poses", _POSES_TITLE, curves, _aps_by_class(curves))
    boxes_3d = None
    if model.has_octagons:
        _add_masks(report, ground_truth, results)
    if task == "boxes_3d":
        boxes_3d = _labelled_boxes_3d(ground_truth, model)
        _add_kitti(report, ground_truth, detections, model)
        _add_box_3d_errors(report, labels, thresholded, boxes_3d)
    report.highlights = _highlights(report, scores, run)
    report.sections.append(recall_curves(curves, similarity))
    _add_errors(report, pairs, gains, scores, threshold)
    matrix = confusion_matrix(pairs, len(model.classes))
    # Labelled class, detected class, count; the index after the last class is the background.
    report.metrics["confusions"] = [
        [int(row), int(column), int(matrix[row, column])] for row, column in np.argwhere(matrix)
    ]
    report.sections.append(confusion_section(matrix, model.classes, threshold))
    _add_sizes(report, ground_truth)
    _add_scores(report, scored, threshold)
    _add_false_discovery(report, ground_truth, results)
    _add_speed(report, run)
    report.sections.append(worst_images(ground_truth.images, labels, thresholded, model, boxes_3d))
    return report


def labels_digest(ground_truth: GroundTruth) -> str:
    """Return the SHA-256 of the images' names and ids and of all labels, with the class ids."""
    listed = [[image.image_id, image.path.name] for image in ground_truth.images]
    content = [listed, ground_truth.coco["annotations"], ground_truth.coco["categories"]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


_POSES_TITLE = "Poses (COCO, object keypoint similarity)"
_NO_SIGMAS = Section(
    _POSES_TITLE,
    [Table(["not measured"], [])],
    "The labels have no sigmas for these keypoints: give sigmas in the category, or with --sigmas.",
)


def _highlights(report: Report, scores: CocoScores, run: DetectionRun) -> list[tuple[str, Cell]]:
    """Return the AP of the task, those of boxes, and the speed."""
    values: list[tuple[str, Cell]] = []
    if "poses" in report.metrics:
        values.append(("AP of poses", report.metrics["poses"]["all"]["AP"]))
    if "masks" in report.metrics:
        values.append(("AP of masks", report.metrics["masks"]["all"]["AP"]))
    values += [(f"{name} of boxes", scores.summary[name]) for name in ("AP", "AP50", "AP75")]
    if "boxes_3d" in report.metrics:
        values.append(("median 3D IoU", report.metrics["boxes_3d"]["iou_3d"]))
    return [*values, ("images/s", f"{run.speed()['images_per_s']:.1f}")]


def _add_false_discovery(
    report: Report, ground_truth: GroundTruth, results: Sequence[dict[str, Any]]
) -> None:
    rates = false_discovery(ground_truth.coco, results)
    report.metrics["false_discovery"] = rates
    percent = [f"{100 * rate:.1f}" if rate == rate else "–" for rate in rates.values()]  # noqa: RUF001
    report.sections.append(Section("False discovery", [Table(list(rates), [percent])], _RATES))


def _add_summary(report: Report, key: str, title: str, scores: CocoScores, by_class: Table) -> None:
    report.metrics[key] = {"all": dict(scores.summary), "per_class": dict(scores.per_class)}
    summary = Table(list(scores.summary), [list(scores.summary.values())])
    report.sections.append(Section(title, [summary, by_class]))


def _aps_by_class(scores: CocoScores) -> Table:
    rows: list[Sequence[Cell]] = [[name, *values] for name, values in scores.per_class.items()]
    return Table(["class", "AP", "AP50", "AP75"], rows, "By class")


def _add_masks(
    report: Report, ground_truth: GroundTruth, results: Sequence[dict[str, Any]]
) -> None:
    title = "Masks (COCO, octagons)"
    try:
        scores = mask_scores(ground_truth.coco, results)
    except ValueError as error:
        note = (
            f"The masks of the labels are incomplete: {error}. Give COCO labels with a "
            "segmentation of every object, and the size of every image."
        )
        report.sections.append(Section(title, [Table(["not measured"], [])], note))
        return
    _add_summary(report, "masks", title, scores, _aps_by_class(scores))


def _add_keypoints(
    report: Report, images: Sequence[tuple[ImageLabels, ImageDetections]], model: ModelUnderTest
) -> None:
    errors = keypoint_errors(images, len(model.keypoints))
    names = [*model.keypoints, "all"]
    report.metrics["keypoints"] = {
        "names": names,
        "pck": {
            str(threshold): row.tolist()
            for threshold, row in zip(PCK_THRESHOLDS, errors.pck, strict=True)
        },
        "mean_error_px": errors.mean_error_px.tolist(),
        "objects": errors.objects,
        "found": errors.found,
    }
    pck_columns = [f"PCK {threshold:.0%}" for threshold in PCK_THRESHOLDS]
    values = np.vstack([errors.pck, errors.mean_error_px]).T.tolist()
    rows = [[name, *row] for name, row in zip(names, values, strict=True)]
    note = (
        f"{errors.found} of {errors.objects} objects were detected at the model's threshold; the "
        "keypoints of the others are wrong for PCK and have no error in pixels. The thresholds of "
        "PCK are relative to the longest distance between two labelled keypoints of the object."
    )
    table = Table(["keypoint", *pck_columns, "mean error (px)"], rows)
    report.sections.append(Section("Keypoints", [table], note))


def kitti_metrics(
    ground_truth: GroundTruth, detections: Sequence[ImageDetections], classes: Sequence[str]
) -> KittiMetrics:
    """Return KITTI's AP and AOS by class, IoU and kind, for each difficulty.

    At both IoUs of :func:`~evaluation.metrics.kitti.compared_ious`; 2D boxes and AOS keep the
    official IoU.
    """
    metrics: KittiMetrics = {}
    for name, frames in frames_by_class(ground_truth, detections, classes).items():
        metrics[name] = {}
        official = official_iou(name)
        for iou in compared_ious(name):
            scores = kitti_scores(frames, name, iou, min_iou_2d=official)
            values_of = {**scores.ap, "AOS": scores.aos}
            metrics[name][f"{iou:g}"] = {kind: list(values) for kind, values in values_of.items()}
    return metrics


def frames_by_class(
    ground_truth: GroundTruth, detections: Sequence[ImageDetections], classes: Sequence[str]
) -> dict[str, list[Frame]]:
    """Return the labels and detections of each class that has labels, image by image."""
    boxes_3d = [(ground_truth.boxes_3d or {})[image.image_id] for image in ground_truth.images]
    labelled = {category["id"] for category in ground_truth.coco["categories"]}
    return {
        name: [
            Frame(labels, one[one.class_ids == class_id])
            for labels, one in zip(boxes_3d, detections, strict=True)
        ]
        for class_id, name in enumerate(classes)
        if class_id in labelled
    }


def _add_kitti(
    report: Report,
    ground_truth: GroundTruth,
    detections: Sequence[ImageDetections],
    model: ModelUnderTest,
) -> None:
    metrics = kitti_metrics(ground_truth, detections, model.classes)
    report.metrics["kitti"] = metrics
    rows: list[list[Cell]] = [
        [name, kind, iou, *values]
        for name, by_iou in metrics.items()
        for iou, values_of in by_iou.items()
        for kind, values in values_of.items()
        if iou == f"{official_iou(name):g}" or kind in ("BEV", "3D")
    ]
    note = "40 recall points (R40). AOS: average orientation similarity of the 2D boxes."
    table = Table(["class", "AP", "IoU", *DIFFICULTIES], rows)
    report.sections.append(Section("KITTI", [table], note))


def _labelled_boxes_3d(
    ground_truth: GroundTruth, model: ModelUnderTest
) -> list[NDArray[np.float64]]:
    """Return the 3D boxes (n, 7) of each image, of the model's classes."""
    boxes_3d = [(ground_truth.boxes_3d or {})[image.image_id] for image in ground_truth.images]
    return [to_boxes_3d(one)[np.isin(one.types, model.classes)] for one in boxes_3d]


def _add_box_3d_errors(
    report: Report,
    labels: Sequence[ImageLabels],
    detections: Sequence[ImageDetections],
    boxes: Sequence[NDArray[np.float64]],
) -> None:
    errors = box_3d_errors(list(zip(labels, detections, boxes, strict=True)))
    report.metrics["boxes_3d"] = asdict(errors)
    table = Table(
        ["", "median"],
        [
            ["depth error (%)", 100 * errors.depth],
            ["height error (%)", 100 * errors.height],
            ["width error (%)", 100 * errors.width],
            ["length error (%)", 100 * errors.length],
            ["rotation error (degrees)", errors.rotation_deg],
            ["3D IoU", errors.iou_3d],
        ],
    )
    note = (
        f"{errors.found} of {errors.objects} labelled objects of all difficulties were detected at "
        "the model's threshold (same class, 2D IoU of 0.5)."
    )
    report.sections.append(Section("3D boxes", [table], note))


def _add_errors(
    report: Report,
    pairs: Sequence[tuple[ImageLabels, ImageDetections]],
    gains: Mapping[str, float],
    scores: CocoScores,
    threshold: float,
) -> None:
    counts: Counter[str] = Counter()
    for pair in pairs:
        counts.update(find_errors(*pair).counts())
    report.metrics["errors"] = {"dap50": dict(gains), "at_threshold": dict(counts)}
    report.sections.append(error_section(gains, counts, threshold, scores.summary["AP50"]))


def _add_sizes(report: Report, ground_truth: GroundTruth) -> None:
    objects = [one for one in ground_truth.coco["annotations"] if not one["iscrowd"]]
    poses = [one for one in objects if one.get("num_keypoints")]
    for key, title, counted in (
        ("boxes", "Boxes by size", objects),
        ("poses", "Poses by size", poses),
    ):
        if key in report.metrics:
            counts = count_by_size([one["area"] for one in counted])
            report.metrics[key]["objects_by_size"] = counts
            report.sections.append(size_section(title, counts, report.metrics[key]["all"]))


def _add_scores(report: Report, by_class: Mapping[str, ScoredDetections], threshold: float) -> None:
    scored = ScoredDetections(
        np.concatenate([one.true_positives for one in by_class.values()]),
        np.concatenate([one.false_positives for one in by_class.values()]),
        sum(one.objects for one in by_class.values()),
    )
    report.metrics["at_threshold"] = {
        name: dict(zip(("precision", "recall", "f1"), one.at(threshold), strict=True))
        for name, one in {"all": scored, **by_class}.items()
    }
    report.sections.append(score_section(scored, threshold))


def _scored_detections(
    labels: Sequence[ImageLabels],
    detections: Sequence[ImageDetections],
    classes: Sequence[str],
) -> dict[str, ScoredDetections]:
    """Return the scores of the true and false positives of each class (same class, IoU 0.5)."""
    correct, wrong, objects = [], [], []
    for image_labels, found in zip(labels, detections, strict=True):
        matches = match_detections(image_labels, found, same_class=True)
        correct.append(found[matches.pairs[:, 1]])
        wrong.append(found[matches.false_positives])
        objects.append(image_labels.class_ids[~image_labels.is_crowd])
    correct_ids, correct_scores = _ids_and_scores(correct)
    wrong_ids, wrong_scores = _ids_and_scores(wrong)
    object_ids = np.concatenate(objects)
    return {
        name: ScoredDetections(
            correct_scores[correct_ids == class_id],
            wrong_scores[wrong_ids == class_id],
            int((object_ids == class_id).sum()),
        )
        for class_id, name in enumerate(classes)
    }


def _ids_and_scores(
    detections: Sequence[ImageDetections],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the class ids and scores of all images."""
    return (
        np.concatenate([one.class_ids for one in detections]),
        np.concatenate([one.scores for one in detections]),
    )


def _add_speed(report: Report, run: DetectionRun) -> None:
    speed = run.speed()
    report.metrics["speed"] = {**speed, "in_flight": IN_FLIGHT}
    note = f"{IN_FLIGHT} images at a time, after one image to warm up."
    columns = ["images/s", "p50 (ms)", "p95 (ms)"]
    row = [f"{value:.1f}" for value in speed.values()]
    report.sections.append(Section("Speed", [Table(columns, [row])], note))
