"""``centernet-eval``: evaluate a package or a running service with the papers' metrics."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from command_line.progress import COUNT, PERCENTAGE, Steps, add_quiet_option
from command_line.version import add_version_option
from evaluation.comparison import add_comparison, read_run
from evaluation.errors import EvaluationError
from evaluation.evaluate import evaluate, labels_digest
from evaluation.ground_truth import GroundTruth, check_images, map_to_classes
from evaluation.ground_truth_centers import with_ground_truth_centers
from evaluation.http_model import HttpModel
from evaluation.label_readers import read_ground_truth
from evaluation.local_model import LocalModel
from evaluation.metrics.bootstrap import RESAMPLES
from evaluation.model_under_test import DetectionRun, DetectionSource
from evaluation.report import Report, prepare_output, write_report
from evaluation.tasks import choose_sigmas, choose_task
from reports.page import Section, Table

_EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate and write the report; exit with status 1 on an error, 130 after Ctrl-C."""
    args = _parser().parse_args(arguments)
    total = 5 + 2 * args.ground_truth_centers + (args.compare is not None)
    steps = Steps(total, quiet=args.quiet)
    try:
        report = _evaluate(args, steps)
        steps.begin(f"Write {args.output}")
        write_report(report, args.output)
        steps.end()
    except (EvaluationError, OSError) as error:
        steps.end("failed")
        print(f"centernet-eval: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        steps.end("interrupted")
        sys.exit(_EXIT_INTERRUPTED)
    print(report.markdown())
    print(f"The complete report is {args.output / 'report.html'}.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="centernet-eval", description=__doc__)
    parser.add_argument(
        *("--annotations",),
        type=Path,
        required=True,
        help="a COCO file, or a directory of Pascal VOC .xml or KITTI label_2/*.txt files",
    )
    parser.add_argument("--images", type=Path, required=True, help="directory of the images")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--package", type=Path, help="model package to run in this process")
    model.add_argument("--url", help="base URL of a running service")
    parser.add_argument("--model", help="with --url: name of the model (default: the default one)")
    parser.add_argument(
        *("--api-key",),
        default=os.environ.get("CENTERNET_API_KEY") or None,
        help="with --url: API key (default: the environment variable CENTERNET_API_KEY)",
    )
    parser.add_argument(
        "--task",
        choices=("boxes", "poses", "boxes_3d"),
        help="default: the task of the model; with several, the one that the labels are for",
    )
    parser.add_argument(
        *("--sigmas",),
        type=float,
        nargs="+",
        metavar="SIGMA",
        help="for poses: OKS sigma of each keypoint (default: those of the labels' category, or "
        "COCO's if there are 17 keypoints)",
    )
    parser.add_argument(
        *("--ground-truth-centers",),
        action="store_true",
        help="for triplets, with --package: run again with the centers of the labels and compare",
    )
    parser.add_argument(
        *("--compare",),
        type=Path,
        metavar="DIR",
        help="--output of an earlier run with the same labels: add the differences to it",
    )
    parser.add_argument("--output", type=Path, required=True, help="new directory for the report")
    add_quiet_option(parser)
    add_version_option(parser)
    return parser


def _evaluate(args: argparse.Namespace, steps: Steps) -> Report:
    if args.model is not None and args.url is None:
        raise EvaluationError("--model names a model of a service: give --url, too.")
    if args.ground_truth_centers and args.package is None:
        raise EvaluationError("--ground-truth-centers needs the raw outputs: give --package.")
    prepare_output(args.output)
    steps.begin(f"Read the labels of {args.images}")
    ground_truth = read_ground_truth(args.annotations, args.images)
    check_images(ground_truth)
    steps.begin(f"Load {args.package}" if args.url is None else f"Connect to {args.url}")
    source: DetectionSource = (
        LocalModel(args.package)
        if args.url is None
        else HttpModel(args.url, args.model, args.api_key)
    )
    model = source.model
    if args.ground_truth_centers and model.kind != "corner_triplets":
        raise EvaluationError(
            f"--ground-truth-centers: {model.name} has the decoder {model.kind}; only "
            "corner_triplets has centers that can be replaced."
        )
    task = choose_task(args.task, model, ground_truth)
    ground_truth = map_to_classes(ground_truth, model.classes, with_masks=model.has_octagons)
    sigmas = choose_sigmas(args.sigmas, model, ground_truth) if task == "poses" else None
    earlier = None
    if args.compare is not None:
        digest = labels_digest(ground_truth)
        earlier = read_run(args.compare, ground_truth, task, digest, len(model.classes))
    run = _run(source, ground_truth, steps)
    steps.begin("Compute the metrics")
    report = evaluate(model, ground_truth, run, task, sigmas)
    if earlier is not None:
        resamples = RESAMPLES * (1 if sigmas is None else 2)
        steps.begin(f"Compare with {args.compare}", PERCENTAGE, resamples)
        add_comparison(
            *(report, earlier, ground_truth, run.detections, model, sigmas),
            steps.advance,
        )
    if args.ground_truth_centers:
        source = with_ground_truth_centers(args.package, ground_truth)
        run = _run(source, ground_truth, steps)
        steps.begin("Compute the metrics")
        with_centers = evaluate(model, ground_truth, run, task, sigmas)
        _add_center_analysis(report, with_centers)
    return report


def _run(source: DetectionSource, ground_truth: GroundTruth, steps: Steps) -> DetectionRun:
    steps.begin(
        f"Detect with {source.model.name}, {source.model.reached}", COUNT, len(ground_truth.images)
    )
    return source.detect(ground_truth.images, steps.advance)


def _add_center_analysis(report: Report, with_centers: Report) -> None:
    """Add a table that compares the scores with predicted and with labelled centers."""
    predicted = report.metrics["boxes"]["all"]
    labelled = with_centers.metrics["boxes"]["all"]
    report.metrics["with_ground_truth_centers"] = labelled
    rows = [
        ["predicted", *predicted.values()],
        ["ground truth", *labelled.values()],
        ["difference", *(labelled[name] - predicted[name] for name in predicted)],
    ]
    title = "Centers replaced by those of the labels"
    report.sections.insert(0, Section(title, [Table(["centers", *predicted], rows)]))
