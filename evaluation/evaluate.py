"""Compute all metrics of a model from its detections and the ground truth."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.detections import ImageDetections, to_coco_results
from evaluation.ground_truth import GroundTruth, ImageLabels, labels_by_image
from evaluation.metrics.boxes_3d import box_3d_errors, to_boxes_3d
from evaluation.metrics.coco import CocoScores, box_scores, false_discovery, pose_scores
from evaluation.metrics.kitti import DIFFICULTIES, Frame, kitti_scores, official_iou
from evaluation.metrics.matching import confusion_matrix, match_detections
from evaluation.metrics.poses import PCK_THRESHOLDS, keypoint_errors
from evaluation.model_under_test import IN_FLIGHT, DetectionRun, ModelUnderTest
from evaluation.plots import confusion_plot, recall_curves, score_histogram
from evaluation.report import Cell, Report, Table
from evaluation.worst_images import worst_images

_RATES = "1 - AP at IoU 0.05, 0.10 ... 0.50 (Keypoint Triplets, section 3.1), in percent."


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
    thresholded = [one.filter_by_score(model.score_threshold) for one in detections]
    results = to_coco_results(detections, [image.image_id for image in ground_truth.images])
    report = Report(
        f"{model.name} {model.version} on {len(ground_truth.images)} images",
        [
            f"{task}, {model.reached}, {model.engine}",
            f"{sum(len(one.class_ids) for one in labels)} labels, {len(results)} detections",
            f"score threshold of the model: {model.score_threshold:g}",
        ],
        metrics={"model": asdict(model), "task": task, "images": len(ground_truth.images)},
        detections=results,
    )
    scores = _add_boxes(report, ground_truth, results)
    similarity = "IoU"
    if task == "poses":
        _add_keypoints(report, list(zip(labels, thresholded, strict=True)), model)
        if sigmas is None:
            report.sections.append(_NO_SIGMAS)
        else:
            scores, similarity = pose_scores(ground_truth.coco, results, sigmas), "OKS"
            _add_summary(report, "poses", _POSES_TITLE, scores)
    if task == "boxes_3d":
        _add_kitti(report, ground_truth, detections, model)
        _add_box_3d_errors(report, ground_truth, labels, thresholded, model)
    _add_speed(report, run)
    report.sections.append(recall_curves(scores.curves, similarity))
    report.sections.append(
        confusion_plot(
            confusion_matrix(list(zip(labels, thresholded, strict=True)), len(model.classes)),
            model.classes,
            f"Confusion matrix at score {model.score_threshold:g} and IoU 0.5",
        )
    )
    report.sections.append(
        score_histogram(*_true_and_false_scores(labels, detections), model.score_threshold)
    )
    report.sections += worst_images(ground_truth.images, labels, thresholded, model)
    return report


_POSES_TITLE = "Poses (COCO, object keypoint similarity)"
_NO_SIGMAS = Table(
    _POSES_TITLE,
    ["not measured"],
    [],
    "The labels have no sigmas for these keypoints: give sigmas in the category, or with --sigmas.",
)


def _add_boxes(
    report: Report, ground_truth: GroundTruth, results: Sequence[dict[str, Any]]
) -> CocoScores:
    scores = box_scores(ground_truth.coco, results)
    _add_summary(report, "boxes", "Boxes (COCO)", scores)
    rates = false_discovery(ground_truth.coco, results)
    report.metrics["false_discovery"] = rates
    percent = [f"{100 * rate:.1f}" if rate == rate else "–" for rate in rates.values()]  # noqa: RUF001
    report.sections.append(Table("False discovery", list(rates), [percent], _RATES))
    return scores


def _add_summary(report: Report, key: str, title: str, scores: CocoScores) -> None:
    report.metrics[key] = {"all": dict(scores.summary), "per_class": dict(scores.per_class)}
    report.sections.append(Table(title, list(scores.summary), [list(scores.summary.values())]))
    rows: list[list[Cell]] = [[name, *values] for name, values in scores.per_class.items()]
    report.sections.append(Table(f"{title}, by class", ["class", "AP", "AP50", "AP75"], rows))


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
    report.sections.append(
        Table("Keypoints", ["keypoint", *pck_columns, "mean error (px)"], rows, note)
    )


def _add_kitti(
    report: Report,
    ground_truth: GroundTruth,
    detections: Sequence[ImageDetections],
    model: ModelUnderTest,
) -> None:
    boxes_3d = [(ground_truth.boxes_3d or {})[image.image_id] for image in ground_truth.images]
    rows: list[list[Cell]] = []
    metrics: dict[str, Any] = {}
    labelled = {category["id"] for category in ground_truth.coco["categories"]}
    for class_id, name in enumerate(model.classes):
        if class_id not in labelled:
            continue
        frames = [
            Frame(labels, one[one.class_ids == class_id])
            for labels, one in zip(boxes_3d, detections, strict=True)
        ]
        metrics[name] = {}
        official = official_iou(name)
        # 2D boxes and AOS keep the official IoU. In 3D, the lower IoU is more informative for a
        # single camera.
        for iou in (official, official - 0.2 if official > 0.5 else 0.25):
            scores = kitti_scores(frames, name, iou, min_iou_2d=official)
            values_of = {**scores.ap, "AOS": scores.aos}
            metrics[name][f"{iou:g}"] = {kind: list(values) for kind, values in values_of.items()}
            for kind, values in values_of.items():
                if iou == official or kind in ("BEV", "3D"):
                    rows.append([name, kind, f"{iou:g}", *values])
    report.metrics["kitti"] = metrics
    note = "40 recall points (R40). AOS: average orientation similarity of the 2D boxes."
    report.sections.append(Table("KITTI", ["class", "AP", "IoU", *DIFFICULTIES], rows, note))


def _add_box_3d_errors(
    report: Report,
    ground_truth: GroundTruth,
    labels: Sequence[ImageLabels],
    detections: Sequence[ImageDetections],
    model: ModelUnderTest,
) -> None:
    boxes_3d = [(ground_truth.boxes_3d or {})[image.image_id] for image in ground_truth.images]
    boxes = [to_boxes_3d(one)[np.isin(one.types, model.classes)] for one in boxes_3d]
    errors = box_3d_errors(list(zip(labels, detections, boxes, strict=True)))
    report.metrics["boxes_3d"] = asdict(errors)
    report.sections.append(
        Table(
            "3D boxes",
            ["", "median"],
            [
                ["depth error (%)", 100 * errors.depth],
                ["height error (%)", 100 * errors.height],
                ["width error (%)", 100 * errors.width],
                ["length error (%)", 100 * errors.length],
                ["rotation error (degrees)", errors.rotation_deg],
                ["3D IoU", errors.iou_3d],
            ],
            f"{errors.found} of {errors.objects} labelled objects of all difficulties were "
            "detected at the model's threshold (same class, 2D IoU of 0.5).",
        )
    )


def _add_speed(report: Report, run: DetectionRun) -> None:
    speed = run.speed()
    report.metrics["speed"] = {**speed, "in_flight": IN_FLIGHT}
    note = f"{IN_FLIGHT} images at a time, after one image to warm up."
    columns = ["images/s", "p50 (ms)", "p95 (ms)"]
    row = [f"{value:.1f}" for value in speed.values()]
    report.sections.append(Table("Speed", columns, [row], note))


def _true_and_false_scores(
    labels: Sequence[ImageLabels], detections: Sequence[ImageDetections]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the scores of all true and of all false positives (same class, IoU 0.5)."""
    true_positives, false_positives = [], []
    for image_labels, image_detections in zip(labels, detections, strict=True):
        matches = match_detections(image_labels, image_detections, same_class=True)
        true_positives.append(image_detections.scores[matches.pairs[:, 1]])
        false_positives.append(image_detections.scores[matches.false_positives])
    return np.concatenate(true_positives), np.concatenate(false_positives)
