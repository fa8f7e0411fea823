"""COCO's metrics and the false discovery rates of *Keypoint Triplets*, by pycocotools."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

BOX_NAMES = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)
"""pycocotools' twelve metrics of boxes and masks, in its order."""
POSE_NAMES = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
"""pycocotools' ten metrics of poses, in its order."""
FALSE_DISCOVERY_IOUS = np.linspace(0.05, 0.5, 10)
"""The IoUs of FD (*CenterNet: Keypoint Triplets*, section 3.1, footnote 1)."""

COCO_SIGMAS: NDArray[np.float64] = (
    np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
)
"""COCO's sigmas, nose to ankles."""

_MAX_SIDE_PX = 65_535
"""Of images with masks: the largest side that JPEG has."""


@dataclass(frozen=True)
class CocoScores:
    """COCO's metrics; NaN where no object is labelled.

    Attributes:
        summary: by :data:`BOX_NAMES` or :data:`POSE_NAMES`.
        per_class: AP, AP50 and AP75 by class.
        curves: by class, the precision at IoU (or OKS) 0.5 for the 101 recalls 0, 0.01 ... 1.
        mean_curves: the mean over the classes, by AP, AP50 and AP75: their means over the recalls.
    """

    summary: Mapping[str, float]
    per_class: Mapping[str, tuple[float, float, float]]
    curves: Mapping[str, NDArray[np.float64]]
    mean_curves: Mapping[str, NDArray[np.float64]]


def box_scores(coco: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> CocoScores:
    """Compute AP and AR of boxes; ``results`` are in COCO's result format."""
    return scores_of(evaluate_boxes(coco, results), coco)


def box_ap50(coco: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> float:
    """Compute only AP50 of boxes; NaN without objects."""
    evaluation = _evaluate(coco, results, "bbox", ious=np.array([0.5]), sizes=1)
    return _mean(evaluation.eval["precision"][..., 0, -1])


def evaluate_boxes(coco: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Any:
    """Return pycocotools' evaluation of boxes."""
    return _evaluate(coco, results, "bbox")


def pose_scores(
    coco: Mapping[str, Any], results: Sequence[Mapping[str, Any]], sigmas: NDArray[np.float64]
) -> CocoScores:
    """Compute AP and AR by object keypoint similarity.

    ``sigmas``: (keypoints,), the standard deviation of the labels relative to the object's size.
    """
    return scores_of(evaluate_poses(coco, results, sigmas), coco)


def evaluate_poses(
    coco: Mapping[str, Any], results: Sequence[Mapping[str, Any]], sigmas: NDArray[np.float64]
) -> Any:
    """Return pycocotools' evaluation of poses; see :func:`pose_scores`."""
    # pycocotools evaluates results with a box as boxes, and needs keypoints in all others.
    results = [
        {name: value for name, value in result.items() if name != "bbox"}
        for result in results
        if "keypoints" in result
    ]
    # pycocotools needs keypoints in every label and ignores those without a labelled keypoint.
    unlabelled = {"keypoints": [0] * 3 * len(sigmas), "num_keypoints": 0}
    coco = {**coco, "annotations": [unlabelled | label for label in coco["annotations"]]}
    return _evaluate(coco, results, "keypoints", sigmas=sigmas)


def mask_scores(coco: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> CocoScores:
    """Compute AP and AR of masks: pycocotools' ``segm``, of the polygons of ``results``.

    Raises :class:`ValueError` unless every label has a segmentation, as polygons or run lengths,
    and every image a width and a height.
    """
    sizes = {}
    for image in coco["images"]:
        size = image.get("height"), image.get("width")
        if not all(isinstance(side, int) and 0 < side <= _MAX_SIDE_PX for side in size):
            raise ValueError(f"image {image['id']} has no width and height")
        sizes[image["id"]] = size
    labels = []
    for label in coco["annotations"]:
        try:
            run_lengths = _run_lengths(label["segmentation"], *sizes[label["image_id"]])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"annotation {label['id']} has no valid segmentation") from error
        labels.append({**label, "segmentation": run_lengths})
    # pycocotools takes the areas of masks from results without a box.
    masks = [
        {
            **{name: value for name, value in result.items() if name != "bbox"},
            "segmentation": _run_lengths(result["segmentation"], *sizes[result["image_id"]]),
        }
        for result in results
    ]
    coco = {**coco, "annotations": labels}
    return scores_of(_evaluate(coco, masks, "segm"), coco)


def _run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Return a mask in pycocotools' compressed form. Raises :class:`ValueError`."""
    if isinstance(segmentation, dict):
        counts = np.array(segmentation["counts"], np.int64)
        if segmentation["size"] != [height, width] or counts.ndim != 1 or (counts < 0).any():
            raise ValueError("not the size of the image")
        if counts.sum() != height * width:
            raise ValueError("the run lengths are not those of the image")
        run_lengths: dict[str, Any] = mask.frPyObjects(segmentation, height, width)
        return run_lengths
    polygons = [np.array(polygon, np.float64) for polygon in segmentation]
    if not polygons:
        raise ValueError("no polygon")
    for polygon in polygons:
        is_polygon = polygon.ndim == 1 and polygon.size >= 6 and polygon.size % 2 == 0
        if not is_polygon or not (np.abs(polygon) <= _MAX_SIDE_PX).all():
            raise ValueError("not a list of polygons")
    merged: dict[str, Any] = mask.merge(
        mask.frPyObjects([polygon.tolist() for polygon in polygons], height, width)
    )
    return merged


def false_discovery(
    coco: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Compute the false discovery rates: FD = 1 - AP, averaged over IoU 0.05, 0.10 ... 0.50.

    FD5, FD25 and FD50 are at one IoU; FD_S, FD_M and FD_L, by object size, over all ten
    (*CenterNet: Keypoint Triplets*, section 3.1, footnote 1).
    """
    evaluation = _evaluate(coco, results, "bbox", ious=FALSE_DISCOVERY_IOUS)
    # (IoUs, recalls, classes, sizes, detection limits); sizes: all, small, medium, large.
    precision = evaluation.eval["precision"][..., -1]
    all_sizes = precision[..., 0]
    precisions = {
        "FD": all_sizes,
        "FD5": all_sizes[0],
        "FD25": all_sizes[4],
        "FD50": all_sizes[9],
        "FD_S": precision[..., 1],
        "FD_M": precision[..., 2],
        "FD_L": precision[..., 3],
    }
    return {name: 1 - _mean(values) for name, values in precisions.items()}


def _evaluate(
    coco: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    kind: Literal["bbox", "keypoints", "segm"],
    *,
    ious: NDArray[np.float64] | None = None,
    sigmas: NDArray[np.float64] | None = None,
    sizes: int | None = None,
) -> Any:
    """Run pycocotools, without its prints, on copies, because it adds fields to its inputs.

    ``sizes``: the number of object sizes to evaluate, of which ``all`` is the first.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = {
            **coco,
            "annotations": [dict(label) for label in coco["annotations"]],
        }
        ground_truth.createIndex()
        if results:
            detections = ground_truth.loadRes([dict(result) for result in results])
        else:  # loadRes needs at least one result
            detections = COCO()
            detections.dataset = {**coco, "annotations": []}
            detections.createIndex()
        evaluation = COCOeval(ground_truth, detections, kind)
        if ious is not None:
            evaluation.params.iouThrs = ious
        evaluation.params.areaRng = evaluation.params.areaRng[:sizes]
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = sigmas
        evaluation.evaluate()
        evaluation.accumulate()
        if ious is None:
            evaluation.summarize()
    return evaluation


def scores_of(evaluation: Any, coco: Mapping[str, Any]) -> CocoScores:
    """Return the metrics of pycocotools' evaluation of boxes, masks or poses."""
    names = POSE_NAMES if evaluation.params.iouType == "keypoints" else BOX_NAMES
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    class_names = {category["id"]: category["name"] for category in coco["categories"]}
    per_class, curves = {}, {}
    for index, category in enumerate(evaluation.params.catIds):
        values = precision[:, :, index]
        if values.max() > -1:  # -1: no object of the class
            name = class_names[category]
            per_class[name] = (_mean(values), _mean(values[0]), _mean(values[5]))
            curves[name] = values[0]
    stats = [value if value > -1 else np.nan for value in evaluation.stats.tolist()]
    labelled = precision[:, :, precision.max(axis=(0, 1)) > -1]
    mean_curves = {}
    if labelled.size:
        at_ious = labelled.mean(axis=2)
        mean_curves = {"AP": at_ious.mean(axis=0), "AP50": at_ious[0], "AP75": at_ious[5]}
    return CocoScores(dict(zip(names, stats, strict=True)), per_class, curves, mean_curves)


def _mean(precision: NDArray[np.float64]) -> float:
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else float("nan")
