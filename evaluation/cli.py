"""``centernet-eval``: evaluate a package or a running service with the papers' metrics."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from evaluation.errors import EvaluationError
from evaluation.evaluate import evaluate
from evaluation.ground_truth import GroundTruth, check_images, for_classes
from evaluation.ground_truth_centers import with_ground_truth_centers
from evaluation.http_model import ServedModel
from evaluation.label_readers import read_ground_truth
from evaluation.local_model import OfflinePackage
from evaluation.metrics.coco import COCO_SIGMAS
from evaluation.model_under_test import ModelUnderTest, Run, Source
from evaluation.report import Report, Table, check_output, write_report

TASKS = ("boxes", "poses", "boxes_3d")


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit with status 1 when nothing could be measured, or when it cannot be written."""
    given = _parser().parse_args(arguments)
    try:
        report = _evaluate(given)
        write_report(report, given.output)
    except (EvaluationError, OSError) as error:
        print(f"centernet-eval: error: {error}", file=sys.stderr)
        sys.exit(1)
    tables = [part for part in report.parts if isinstance(part, Table)]
    print(Report(report.title, report.lines, list(tables)).markdown())
    print(f"{given.output / 'report.html'} has all of it.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="centernet-eval", description=__doc__)
    parser.add_argument(
        *("--annotations",),
        type=Path,
        required=True,
        help="a COCO file, or a directory of VOC's .xml or KITTI's label_2/*.txt files",
    )
    parser.add_argument("--images", type=Path, required=True, help="directory of the images")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--package", type=Path, help="evaluate this package, run in this process")
    where.add_argument("--url", help="evaluate a model behind the service that listens here")
    parser.add_argument("--model", help="with --url: a model by name; without it, the default one")
    parser.add_argument(
        "--task", choices=TASKS, help="what to evaluate; usually all the model finds"
    )
    parser.add_argument(
        *("--sigmas",),
        type=float,
        nargs="+",
        metavar="SIGMA",
        help="poses: how exact each keypoint's label is; COCO's own where there are 17 keypoints",
    )
    parser.add_argument(
        *("--ground-truth-centers",),
        action="store_true",
        help="triplets, with --package: run again with the labels' centers, and compare",
    )
    parser.add_argument("--output", type=Path, required=True, help="a new directory")
    return parser


def _evaluate(given: argparse.Namespace) -> Report:
    if given.model is not None and given.url is None:
        raise EvaluationError("--model names a model behind a service: give --url, too.")
    if given.ground_truth_centers and given.package is None:
        raise EvaluationError("--ground-truth-centers needs the raw outputs: give a --package.")
    check_output(given.output)
    ground_truth = read_ground_truth(given.annotations, given.images)
    check_images(ground_truth)
    source: Source = (
        OfflinePackage(given.package) if given.url is None else ServedModel(given.url, given.model)
    )
    model = source.model
    if given.ground_truth_centers and model.kind != "corner_triplets":
        raise EvaluationError(
            f"--ground-truth-centers: {model.name} has the decoder {model.kind}; only "
            "corner_triplets has centers that labels could replace."
        )
    task = check_task(given.task or model.task, model, ground_truth)
    ground_truth = for_classes(ground_truth, model.classes)
    sigmas = choose_sigmas(given.sigmas, model, ground_truth) if task == "poses" else None
    report = evaluate(model, ground_truth, _run(source, ground_truth), task, sigmas)
    if given.ground_truth_centers:
        again = with_ground_truth_centers(given.package, ground_truth)
        _add_center_analysis(
            report, evaluate(model, ground_truth, _run(again, ground_truth), task, sigmas)
        )
    return report


def check_task(task: str, model: ModelUnderTest, ground_truth: GroundTruth) -> str:
    """Return ``task``, or raise :class:`EvaluationError` where model or labels are of another."""
    if task not in ("boxes", model.task):
        raise EvaluationError(
            f"--task {task}: {model.name} finds {model.task}. Evaluate it with --task {model.task}"
            + ("." if model.task == "boxes" else " or --task boxes.")
        )
    if task == "boxes_3d" and ground_truth.space is None:
        raise EvaluationError(
            f"{model.name} finds 3D boxes, but these labels are flat. Give KITTI's label "
            "directory, or --task boxes."
        )
    if task == "poses":
        counts = {len(one["keypoints"]) // 3 for one in _with_keypoints(ground_truth)}
        if counts != {len(model.keypoints)}:
            labelled = f"{sorted(counts)} keypoints" if counts else "no keypoints"
            raise EvaluationError(
                f"{model.name} finds {len(model.keypoints)} keypoints, but the labels have {labelled}. "
                "Give labels of the same keypoints, or --task boxes."
            )
    return task


def _with_keypoints(ground_truth: GroundTruth) -> list[dict[str, list[float]]]:
    return [label for label in ground_truth.coco["annotations"] if label.get("keypoints")]


def choose_sigmas(
    given: Sequence[float] | None, model: ModelUnderTest, ground_truth: GroundTruth
) -> NDArray[np.float64] | None:
    """The option's, else the category's, else COCO's for 17 keypoints, else None.

    Raises :class:`EvaluationError` where their number is not that of the keypoints.
    """
    stated = [one["sigmas"] for one in ground_truth.coco["categories"] if "sigmas" in one]
    sigmas = given if given is not None else stated[0] if stated else None
    if sigmas is None:
        return COCO_SIGMAS if len(model.keypoints) == len(COCO_SIGMAS) else None
    values = np.array(sigmas, np.float64)
    if values.shape != (len(model.keypoints),) or not (values > 0).all():
        raise EvaluationError(
            f"sigmas: received {len(sigmas)}; {model.name} has {len(model.keypoints)} keypoints. Give "
            "one positive number for each."
        )
    return values


def _run(source: Source, ground_truth: GroundTruth) -> Run:
    with tqdm(total=len(ground_truth.images), unit="image", desc=source.model.reached) as progress:
        return source.detect(ground_truth.images, lambda: progress.update())


def _add_center_analysis(report: Report, better: Report) -> None:
    """Put the scores with predicted and with labelled centers beside each other."""
    before, after = report.numbers["boxes"]["all"], better.numbers["boxes"]["all"]
    report.numbers["with_ground_truth_centers"] = after
    rows = [
        ["predicted", *before.values()],
        ["ground truth", *after.values()],
        ["difference", *(after[name] - before[name] for name in before)],
    ]
    report.parts.insert(0, Table("Centers replaced by the labels' own", ["centers", *before], rows))
