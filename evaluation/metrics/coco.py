"""COCO's metrics and the triplets paper's false-discovery rates, both by pycocotools."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

BOX_NAMES = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)
"""pycocotools' twelve numbers for boxes, in its order."""
POSE_NAMES = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
"""pycocotools' ten numbers for poses, in its order."""
FALSE_DISCOVERY_IOUS = np.linspace(0.05, 0.5, 10)
"""The IoUs of FD (*CenterNet: Keypoint Triplets*, section 3.1, footnote 1)."""

COCO_SIGMAS: NDArray[np.float64] = (
    np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
)
"""COCO's per-keypoint constants, nose to ankles."""


@dataclass(frozen=True)
class CocoScores:
    """COCO's numbers; NaN where the labels have no object to measure them on.

    ``per_class``: AP, AP50, AP75 by class; ``curves``: by class, the precision at IoU (or OKS)
    0.5 for the 101 recalls 0, 0.01 ... 1.
    """

    summary: Mapping[str, float]
    per_class: Mapping[str, tuple[float, float, float]]
    curves: Mapping[str, NDArray[np.float64]]


def box_scores(coco: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> CocoScores:
    """AP and AR of boxes; ``rows`` are in COCO's result format."""
    evaluation = _evaluate(coco, rows, "bbox")
    return _scores(evaluation, coco, BOX_NAMES)


def pose_scores(
    coco: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], sigmas: NDArray[np.float64]
) -> CocoScores:
    """AP and AR by object keypoint similarity; ``sigmas`` (keypoints,) says how exact labels are."""
    # With a box, pycocotools would take the rows for boxes.
    rows = [{name: value for name, value in row.items() if name != "bbox"} for row in rows]
    # It needs keypoints in every label; those without any are ignored, as in COCO's own files.
    nothing = {"keypoints": [0] * 3 * len(sigmas), "num_keypoints": 0}
    coco = {**coco, "annotations": [nothing | label for label in coco["annotations"]]}
    return _scores(_evaluate(coco, rows, "keypoints", sigmas=sigmas), coco, POSE_NAMES)


def false_discovery(coco: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """FD = 1 - AP at IoU 0.05, 0.10 ... 0.50, FD at three of them, and by the objects' size.

    *CenterNet: Keypoint Triplets*, section 3.1, footnote 1: the sizes are evaluated at all ten IoUs.
    """
    evaluation = _evaluate(coco, rows, "bbox", ious=FALSE_DISCOVERY_IOUS)
    # (IoUs, recalls, classes, sizes, limits); sizes: all, small, medium, large; limit 100.
    precision = evaluation.eval["precision"][..., -1]
    whole = precision[..., 0]
    kept = {
        "FD": whole,
        "FD5": whole[0],
        "FD25": whole[4],
        "FD50": whole[9],
        "FD_S": precision[..., 1],
        "FD_M": precision[..., 2],
        "FD_L": precision[..., 3],
    }
    return {name: 1 - _mean(values) for name, values in kept.items()}


def _evaluate(
    coco: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    kind: Literal["bbox", "keypoints"],
    *,
    ious: NDArray[np.float64] | None = None,
    sigmas: NDArray[np.float64] | None = None,
) -> Any:
    """Run pycocotools, which prints; it adds fields to what it is given, hence the copies."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = {
            **coco,
            "annotations": [dict(label) for label in coco["annotations"]],
        }
        ground_truth.createIndex()
        if rows:
            found = ground_truth.loadRes([dict(row) for row in rows])
        else:  # loadRes looks at the first
            found = COCO()
            found.dataset = {**coco, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(ground_truth, found, kind)
        if ious is not None:
            evaluation.params.iouThrs = ious
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = sigmas
        evaluation.evaluate()
        evaluation.accumulate()
        if ious is None:
            evaluation.summarize()
    return evaluation


def _scores(evaluation: Any, coco: Mapping[str, Any], names: Sequence[str]) -> CocoScores:
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    class_names = {category["id"]: category["name"] for category in coco["categories"]}
    per_class, curves = {}, {}
    for index, category in enumerate(evaluation.params.catIds):
        values = precision[:, :, index]
        if values.max() > -1:  # -1 marks classes without an object
            name = class_names[category]
            per_class[name] = (_mean(values), _mean(values[0]), _mean(values[5]))
            curves[name] = values[0]
    stats = [value if value > -1 else np.nan for value in evaluation.stats.tolist()]
    return CocoScores(dict(zip(names, stats, strict=True)), per_class, curves)


def _mean(precision: NDArray[np.float64]) -> float:
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else float("nan")
