"""Comparison of a run with an earlier one on the same labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, FiniteFloat, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from evaluation.detections import ImageDetections, from_coco_results, to_coco_results
from evaluation.errors import EvaluationError
from evaluation.evaluate import KittiMetrics, kitti_metrics
from evaluation.ground_truth import GroundTruth, labels_by_image
from evaluation.metrics.bootstrap import LEVEL, RESAMPLES, ap_differences
from evaluation.metrics.coco import (
    evaluate_boxes,
    evaluate_poses,
    scores_of,
)
from evaluation.metrics.error_kinds import corrected_ap_gains
from evaluation.metrics.kitti import DIFFICULTIES
from evaluation.model_under_test import TOP_K, ModelUnderTest
from evaluation.report import DETECTIONS_FILE, RESULTS_FILE, Report
from evaluation.worst_images import differing_images
from reports.charts import Chart, Line
from reports.page import Cell, Section, Table

_MAX_RESULTS_BYTES = 64 * 2**20
_MAX_DETECTION_BYTES, _MAX_KEYPOINT_BYTES = 1000, 100
"""Upper bounds for a detection without its keypoints, and for one keypoint, as JSON."""
_Content = TypeVar("_Content")
_Text = Annotated[str, Field(max_length=4000)]


class _Result(TypedDict):
    image_id: int
    category_id: Annotated[int, Field(ge=0)]
    score: Annotated[float, Field(ge=0, le=1)]
    bbox: Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)]
    keypoints: NotRequired[list[FiniteFloat]]
    box_3d: NotRequired[list[FiniteFloat]]


class _Model(BaseModel):
    name: _Text
    version: _Text
    engine: _Text
    reached: _Text
    keypoints: tuple[_Text, ...]


class _Speed(BaseModel):
    images_per_s: FiniteFloat
    latency_p50_ms: FiniteFloat
    latency_p95_ms: FiniteFloat


class _Results(BaseModel):
    model: _Model
    task: _Text
    labels_sha256: _Text
    speed: _Speed


@dataclass(frozen=True)
class EarlierRun:
    """A run that was written to a report directory.

    ``description``: model and engine; ``speed``: images per second, median and 95th percentile of
    the latency in ms.
    """

    description: str
    detections: Sequence[ImageDetections]
    speed: Sequence[float]


def read_run(
    directory: Path, ground_truth: GroundTruth, task: str, labels_sha256: str, classes: int
) -> EarlierRun:
    """Read the report directory of a run with the same labels, task and number of ``classes``.

    Raises :class:`EvaluationError`. ``labels_sha256``: see
    :func:`evaluation.evaluate.labels_digest`.
    """
    results = _read(directory / RESULTS_FILE, TypeAdapter(_Results), _MAX_RESULTS_BYTES)
    if (results.task, results.labels_sha256) != (task, labels_sha256):
        raise EvaluationError(
            f"--compare {directory}: that run evaluated {results.task}, this one {task}, or the "
            "labels, images or classes differ. Evaluate both models with the same labels, images "
            "and --task; they must have the same classes."
        )
    keypoint_count, is_3d = len(results.model.keypoints), task == "boxes_3d"
    max_bytes = _MAX_DETECTION_BYTES + keypoint_count * _MAX_KEYPOINT_BYTES
    path = directory / DETECTIONS_FILE
    detections = TOP_K * len(ground_truth.images)
    rows = _read(path, TypeAdapter(list[_Result]), detections * max_bytes)
    try:
        if any(row["category_id"] >= classes for row in rows):
            raise ValueError("a category id is not a class of the model")
        by_image = from_coco_results(
            rows,
            [image.image_id for image in ground_truth.images],
            keypoint_count=keypoint_count if task == "poses" else 0,
            is_3d=is_3d,
        )
    except (KeyError, ValueError) as error:
        raise EvaluationError(f"{path}: does not belong to these labels ({error}).") from error
    model = results.model
    return EarlierRun(
        f"{model.name} {model.version}, {model.reached}, {model.engine}",
        by_image,
        [results.speed.images_per_s, results.speed.latency_p50_ms, results.speed.latency_p95_ms],
    )


def _read(path: Path, content: TypeAdapter[_Content], max_bytes: int) -> _Content:
    try:
        with path.open("rb") as file:
            document = file.read(max_bytes + 1)
        if len(document) > max_bytes:
            raise EvaluationError(f"{path}: has more than {max_bytes} bytes, the limit here.")
        return content.validate_json(document)
    except OSError as error:
        raise EvaluationError(
            f"{path} cannot be read: {error.strerror}. --compare names the --output of an earlier "
            "run of centernet-eval."
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise EvaluationError(
            f"{path}: {where}: {first['msg']}. Run centernet-eval again for the earlier model."
        ) from error


def add_comparison(
    report: Report,
    earlier: EarlierRun,
    ground_truth: GroundTruth,
    detections: Sequence[ImageDetections],
    model: ModelUnderTest,
    sigmas: NDArray[np.float64] | None,
    on_resample: Callable[[], object],
) -> None:
    """Add the differences between ``earlier`` and this run to its report.

    ``sigmas``: those of the keypoints, to compare poses, or None; ``on_resample`` is called
    :data:`~evaluation.metrics.bootstrap.RESAMPLES` times.
    """
    image_ids = [image.image_id for image in ground_truth.images]
    runs = earlier.detections, detections
    results = [to_coco_results(run, image_ids) for run in runs]
    coco = ground_truth.coco
    report.metrics["comparison"] = {"reference": earlier.description}
    evaluations = [evaluate_boxes(coco, one) for one in results]
    boxes = _compare_scores(report, "boxes", "IoU", coco, evaluations, on_resample)
    note = f"Reference: {earlier.description}. {boxes.note}"
    sections = [Section(boxes.title, boxes.blocks, note)]
    if sigmas is not None:
        evaluations = [evaluate_poses(coco, one, sigmas) for one in results]
        sections.append(_compare_scores(report, "poses", "OKS", coco, evaluations, on_resample))
    if report.metrics["task"] == "boxes_3d":
        sections.append(
            _compare_kitti(*(kitti_metrics(ground_truth, run, model.classes) for run in runs))
        )
    labels = labels_by_image(ground_truth)
    gains = [corrected_ap_gains(ground_truth, labels, run) for run in runs]
    sections.append(_compare_errors(*gains))
    before, after = ([one.filter_by_score(model.score_threshold) for one in run] for run in runs)
    sections.append(differing_images(ground_truth.images, labels, before, after, model))
    sections.append(_compare_speed(earlier.speed, report))
    report.sections[:0] = sections


def _compare_scores(
    report: Report,
    name: str,
    measure: str,
    coco: Mapping[str, Any],
    evaluations: Sequence[Any],
    on_resample: Callable[[], object],
) -> Section:
    """Compare AP and AR, by class, and the curves at 0.5; also adds the numbers to the metrics.

    ``evaluations``: pycocotools' of the reference and of this run.
    """
    reference, scores = (scores_of(one, coco) for one in evaluations)
    intervals = ap_differences(evaluations[0], evaluations[1], on_resample)
    ends = dict(zip(("AP", "AP50", "AP75"), intervals.overall.tolist(), strict=True))
    report.metrics["comparison"][name] = {
        metric: {
            "reference": reference.summary[metric],
            "difference": value - reference.summary[metric],
            "interval": ends.get(metric),
        }
        for metric, value in scores.summary.items()
    }
    rows = [
        [*_difference(metric, reference.summary[metric], value), _interval(ends.get(metric))]
        for metric, value in scores.summary.items()
    ]
    # Both are in the order of the class ids; classes without objects have no AP.
    labelled = intervals.per_class[~np.isnan(intervals.per_class[:, 0])].tolist()
    by_class = [
        [*_difference(one, reference.per_class[one][0], ap), _interval(interval)]
        for (one, (ap, *_)), interval in zip(scores.per_class.items(), labelled, strict=True)
    ]
    columns = ["reference", "this run", "difference", f"{LEVEL:.0%} interval"]
    recalls = (np.arange(101) / 100).tolist()
    curves = [
        Line(f"{run}: AP50 {one.summary['AP50']:.3f}", recalls, one.mean_curves["AP50"].tolist())
        for run, one in (("reference", reference), ("this run", scores))
        if one.mean_curves
    ]
    return Section(
        f"Comparison of {name}",
        [
            Table(["", *columns], rows),
            Table(["AP by class", *columns], by_class),
            Chart(f"Mean over the classes at {measure} 0.50", "recall", "precision", curves),
        ],
        f"Intervals of the difference: paired bootstrap of {RESAMPLES} resamples of the images. If "
        "an interval contains 0, these images do not show which run is better.",
    )


def _compare_errors(reference: Mapping[str, float], gains: Mapping[str, float]) -> Section:
    rows = [_difference(kind, reference[kind], gain) for kind, gain in gains.items()]
    table = Table(["dAP50", "reference", "this run", "difference"], rows)
    return Section("Comparison of errors by kind", [table])


def _compare_kitti(reference: KittiMetrics, metrics: KittiMetrics) -> Section:
    moderate = DIFFICULTIES.index("moderate")
    rows = [
        _difference(
            f"{name}, {kind}, IoU {iou}", reference[name][iou][kind][moderate], values[moderate]
        )
        for name, by_iou in metrics.items()
        for iou, values_of in by_iou.items()
        for kind, values in values_of.items()
    ]
    table = Table(["moderate AP", "reference", "this run", "difference"], rows)
    return Section("Comparison of 3D boxes (KITTI)", [table])


def _compare_speed(reference: Sequence[float], report: Report) -> Section:
    speed = [report.metrics["speed"][name] for name in _Speed.model_fields]
    rows = [
        [name, *(f"{value:.1f}" for value in values)]
        for name, values in (("reference", reference), ("this run", speed))
    ]
    note = "Measured at different times: compare them only if the machine was idle both times."
    table = Table(["", "images/s", "p50 (ms)", "p95 (ms)"], rows)
    return Section("Comparison of speed", [table], note)


def _difference(name: str, reference: float, value: float) -> list[Cell]:
    return [name, reference, value, _signed(value - reference)]


def _signed(value: float) -> str:
    return "–" if value != value else f"{value:+.4f}"  # noqa: RUF001 (an en dash for NaN)


def _interval(ends: Sequence[float] | None) -> str:
    return "" if ends is None else " to ".join(map(_signed, ends))
