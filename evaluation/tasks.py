"""What a task needs of the labels, and its average precisions (AP)."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.detections import ImageDetections, to_coco_results
from evaluation.errors import EvaluationError
from evaluation.evaluate import frames_by_class
from evaluation.ground_truth import GroundTruth
from evaluation.metrics.coco import COCO_SIGMAS, CocoScores, box_scores, pose_scores
from evaluation.metrics.kitti import compared_ious, moderate_ap_3d
from evaluation.model_under_test import ModelUnderTest

OVERALL = "all"
"""Key of the mean over the classes."""


def choose_task(task: str | None, model: ModelUnderTest, ground_truth: GroundTruth) -> str:
    """Return ``task``, or by default the task of the model that the labels are for.

    Labels have keypoints or 3D boxes, never both. Raises :class:`EvaluationError` if model or
    labels do not support the task.
    """
    if task is None:
        labelled_task = "poses" if ground_truth.boxes_3d is None else "boxes_3d"
        task = labelled_task if labelled_task in model.tasks else model.tasks[-1]
    if task not in model.tasks:
        raise EvaluationError(
            f"--task {task}: {model.name} detects {' and '.join(model.tasks)}. Evaluate it with "
            f"--task {' or --task '.join(model.tasks)}."
        )
    if task == "boxes_3d" and ground_truth.boxes_3d is None:
        raise EvaluationError(
            f"{model.name} detects 3D boxes, but the labels have only 2D boxes. Give a KITTI label "
            "directory; centernet-eval --task boxes evaluates the 2D boxes alone."
        )
    if task == "poses":
        counts = {
            len(label["keypoints"]) // 3
            for label in ground_truth.coco["annotations"]
            if label.get("keypoints")
        }
        if counts != {len(model.keypoints)}:
            labelled = f"{sorted(counts)} keypoints" if counts else "no keypoints"
            raise EvaluationError(
                f"{model.name} detects {len(model.keypoints)} keypoints, but the labels have "
                f"{labelled}. Give labels of the same keypoints; centernet-eval --task boxes "
                "evaluates the boxes alone."
            )
    return task


def choose_sigmas(
    sigmas: Sequence[float] | None, model: ModelUnderTest, ground_truth: GroundTruth
) -> NDArray[np.float64] | None:
    """Return the keypoint sigmas (keypoints,) for OKS.

    The option ``sigmas`` comes first, then the field ``sigmas`` of the category, then COCO's for
    models with 17 keypoints, else None. Raises :class:`EvaluationError` for another number of
    sigmas than keypoints.
    """
    if sigmas is None:
        categories = ground_truth.coco["categories"]
        sigmas = next((entry["sigmas"] for entry in categories if "sigmas" in entry), None)
    if sigmas is None:
        return COCO_SIGMAS if len(model.keypoints) == len(COCO_SIGMAS) else None
    values = np.array(sigmas, np.float64)
    if values.shape != (len(model.keypoints),) or not (values > 0).all():
        raise EvaluationError(
            f"sigmas: received {len(sigmas)}; {model.name} has {len(model.keypoints)} keypoints. "
            "Give one positive number for each."
        )
    return values


def average_precisions(
    model: ModelUnderTest,
    ground_truth: GroundTruth,
    detections: Sequence[ImageDetections],
    sigmas: NDArray[np.float64] | None,
) -> dict[str, dict[str, float]]:
    """Return the APs of a task: by metric, for :data:`OVERALL` and by class.

    ``boxes`` is COCO's AP of 2D boxes. Poses add ``poses``, COCO's AP by object keypoint similarity
    with ``sigmas``; labelled 3D boxes add KITTI's AP in 3D for moderate objects, ``boxes_3d`` at
    the official IoU and ``boxes_3d_low_iou`` at the lower one of
    :func:`~evaluation.metrics.kitti.compared_ious`. Classes without labelled objects are left out.
    ``ground_truth``: with the model's class ids.
    """
    results = to_coco_results(detections, [image.image_id for image in ground_truth.images])
    metrics = {"boxes": _coco_aps(box_scores(ground_truth.coco, results))}
    if sigmas is not None:
        metrics["poses"] = _coco_aps(pose_scores(ground_truth.coco, results, sigmas))
    if model.is_3d and ground_truth.boxes_3d is not None:
        by_class = frames_by_class(ground_truth, detections, model.classes)
        for index, metric in enumerate(("boxes_3d", "boxes_3d_low_iou")):
            metrics[metric] = _kitti_aps(
                {
                    name: moderate_ap_3d(frames, name, compared_ious(name)[index])
                    for name, frames in by_class.items()
                }
            )
    return metrics


def _coco_aps(scores: CocoScores) -> dict[str, float]:
    return {
        OVERALL: scores.summary["AP"],
        **{name: ap for name, (ap, _, _) in scores.per_class.items()},
    }


def _kitti_aps(by_class: Mapping[str, float]) -> dict[str, float]:
    labelled = {name: ap for name, ap in by_class.items() if ap == ap}
    mean = float(np.mean(list(labelled.values()))) if labelled else float("nan")
    return {OVERALL: mean, **labelled}
