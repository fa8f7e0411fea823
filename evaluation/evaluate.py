"""From labels and answers to the report."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.detections import Answer, as_coco_rows
from evaluation.ground_truth import GroundTruth, ImageLabels, labels_by_image
from evaluation.metrics.boxes_3d import as_boxes, box_3d_errors
from evaluation.metrics.coco import CocoScores, box_scores, false_discovery, pose_scores
from evaluation.metrics.kitti import DIFFICULTIES, Frame, kitti_scores, official_iou
from evaluation.metrics.matching import confusion_matrix, match
from evaluation.metrics.poses import PCK_PARTS, keypoint_errors
from evaluation.model_under_test import IN_FLIGHT, ModelUnderTest, Run
from evaluation.plots import confusion, recall_curves, score_histogram
from evaluation.report import Cell, Report, Table
from evaluation.worst_images import worst_images

_RATES = "1 - AP at IoU 0.05, 0.10 ... 0.50 (Keypoint Triplets, section 3.1), in percent."


def evaluate(
    model: ModelUnderTest,
    ground_truth: GroundTruth,
    run: Run,
    task: str,
    sigmas: NDArray[np.float64] | None,
) -> Report:
    """Measure all that ``task`` has numbers for; see :func:`evaluation.ground_truth.for_classes`."""
    answers = run.all_answers()
    labels = labels_by_image(ground_truth)
    shown = [answer.shown(model.score_threshold) for answer in answers]
    rows = as_coco_rows(answers, [image.image_id for image in ground_truth.images])
    report = Report(
        f"{model.name} {model.version} on {len(ground_truth.images)} images",
        [
            f"{task}, {model.reached}, {model.engine}",
            f"{sum(len(one.class_ids) for one in labels)} labels, {len(rows)} detections",
            f"threshold of the model: {model.score_threshold:g}",
        ],
        numbers={"model": asdict(model), "task": task, "images": len(ground_truth.images)},
        rows=rows,
    )
    scores = _add_boxes(report, ground_truth, rows)
    measure = "IoU"
    if task == "poses":
        _add_keypoints(report, list(zip(labels, shown, strict=True)), model)
        if sigmas is None:
            report.parts.append(_NO_SIGMAS)
        else:
            scores, measure = pose_scores(ground_truth.coco, rows, sigmas), "OKS"
            _add_summary(report, "poses", "Poses (COCO, object keypoint similarity)", scores)
    if task == "boxes_3d":
        _add_boxes_3d(report, ground_truth, labels, answers, model)
    _add_speed(report, run)
    report.parts.append(recall_curves(scores.curves, measure))
    report.parts.append(
        confusion(
            confusion_matrix(list(zip(labels, shown, strict=True)), len(model.classes)),
            model.classes,
            f"Confusion at the score {model.score_threshold:g} and IoU 0.5",
        )
    )
    report.parts.append(score_histogram(*_right_and_wrong(labels, answers), model.score_threshold))
    report.parts += worst_images(ground_truth.images, labels, shown, model)
    return report


_NO_SIGMAS = Table(
    "Poses (COCO, object keypoint similarity)",
    ["not measured"],
    [],
    "The labels do not say how exact each keypoint's label is: give sigmas in the category, or "
    "with --sigmas.",
)


def _add_boxes(
    report: Report, ground_truth: GroundTruth, rows: Sequence[dict[str, Any]]
) -> CocoScores:
    scores = box_scores(ground_truth.coco, rows)
    _add_summary(report, "boxes", "Boxes (COCO)", scores)
    rates = false_discovery(ground_truth.coco, rows)
    report.numbers["false_discovery"] = rates
    percent = [f"{100 * rate:.1f}" if rate == rate else "–" for rate in rates.values()]  # noqa: RUF001
    report.parts.append(Table("False discovery", list(rates), [percent], _RATES))
    return scores


def _add_summary(report: Report, key: str, title: str, scores: CocoScores) -> None:
    report.numbers[key] = {"all": dict(scores.summary), "per_class": dict(scores.per_class)}
    report.parts.append(Table(title, list(scores.summary), [list(scores.summary.values())]))
    rows: list[list[Cell]] = [[name, *values] for name, values in scores.per_class.items()]
    report.parts.append(Table(f"{title}, by class", ["class", "AP", "AP50", "AP75"], rows))


def _add_keypoints(
    report: Report, images: Sequence[tuple[ImageLabels, Answer]], model: ModelUnderTest
) -> None:
    errors = keypoint_errors(images, len(model.keypoints))
    report.numbers["keypoints"] = {
        "names": [*model.keypoints, "all"],
        "pck": {str(part): row.tolist() for part, row in zip(PCK_PARTS, errors.pck, strict=True)},
        "mean_error_px": errors.mean_error_px.tolist(),
        "objects": errors.objects,
        "found": errors.found,
    }
    columns = ["keypoint", *(f"PCK {part:.0%}" for part in PCK_PARTS), "mean error (px)"]
    values = np.vstack([errors.pck, errors.mean_error_px]).T.tolist()
    rows = [[name, *row] for name, row in zip([*model.keypoints, "all"], values, strict=True)]
    note = (
        f"{errors.found} of {errors.objects} objects were found at the model's threshold; keypoints "
        "of the others are wrong for PCK and have no error in pixels. PCK is within so much of "
        "the longest distance between two labelled keypoints of the object."
    )
    report.parts.append(Table("Keypoints", columns, rows, note))


def _add_boxes_3d(
    report: Report,
    ground_truth: GroundTruth,
    labels: Sequence[ImageLabels],
    answers: Sequence[Answer],
    model: ModelUnderTest,
) -> None:
    space = [(ground_truth.space or {})[image.image_id] for image in ground_truth.images]
    rows: list[list[Cell]] = []
    numbers: dict[str, Any] = {}
    present = {category["id"] for category in ground_truth.coco["categories"]}
    for class_id, name in enumerate(model.classes):
        if class_id not in present:
            continue
        frames = [
            Frame(one, answer[answer.class_ids == class_id])
            for one, answer in zip(space, answers, strict=True)
        ]
        numbers[name] = {}
        official = official_iou(name)
        # 2D boxes and AOS keep the official IoU; 0.5 and 0.25 in space say more of a camera alone.
        for iou in (official, official - 0.2 if official > 0.5 else 0.25):
            scores = kitti_scores(frames, name, iou, min_iou_2d=official)
            found = {**scores.ap, "AOS": scores.aos}
            numbers[name][f"{iou:g}"] = {way: list(values) for way, values in found.items()}
            for way, values in found.items():
                if iou == official or way in ("BEV", "3D"):
                    rows.append([name, way, f"{iou:g}", *values])
    report.numbers["kitti"] = numbers
    columns = ["class", "AP", "IoU", *DIFFICULTIES]
    note = "40 recalls (R40). AOS: orientation similarity of the 2D boxes."
    report.parts.append(Table("KITTI", columns, rows, note))
    boxes = [as_boxes(one)[np.isin(one.types, model.classes)] for one in space]
    shown = [answer.shown(model.score_threshold) for answer in answers]
    errors = box_3d_errors(list(zip(labels, shown, boxes, strict=True)))
    report.numbers["space"] = asdict(errors)
    report.parts.append(
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
            f"{errors.found} of {errors.objects} labelled objects, whatever their difficulty, "
            "were found at the model's threshold (same class, 2D IoU of 0.5).",
        )
    )


def _add_speed(report: Report, run: Run) -> None:
    speed = run.speed()
    report.numbers["speed"] = {**speed, "in_flight": IN_FLIGHT}
    note = f"{IN_FLIGHT} images at once, after a first one that does not count."
    columns = ["images/s", "p50 (ms)", "p95 (ms)"]
    row = [f"{value:.1f}" for value in speed.values()]
    report.parts.append(Table("Speed", columns, [row], note))


def _right_and_wrong(
    labels: Sequence[ImageLabels], answers: Sequence[Answer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The scores of all detections with an object (same class, IoU 0.5), and of those without."""
    right, wrong = [], []
    for ground_truth, answer in zip(labels, answers, strict=True):
        matches = match(ground_truth, answer, same_class=True)
        right.append(answer.scores[matches.pairs[:, 1]])
        wrong.append(answer.scores[matches.invented])
    return np.concatenate(right), np.concatenate(wrong)
