"""Detect objects in images of a folder, of object storage or of Parquet files, on a Ray cluster.

The results are Parquet files with a row per image. Exit status: 0; 1 if some images could not be
processed; 2 if the run could not be started or completed.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ray.exceptions import RayError

from bulk.detection import complete_options
from bulk.errors import BulkError
from bulk.plan import Plan, make_plan, missing_chunks, read_plan, write_plan
from bulk.results import write_coco
from bulk.run import Actors, ChunkCounts, connect, detect_chunks
from bulk.storage import Location, locate
from client.command.arguments import DETECTION_OPTIONS, add_detection_options, positive
from command_line.progress import add_quiet_option, progress_bar
from command_line.version import add_version_option
from model_package import ModelPackage, PackageError, load_package
from service.errors import ServiceError
from service.option_rules import OptionRules


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    args = _parser().parse_args(arguments)
    try:
        status = run(args)
    except (BulkError, PackageError, ServiceError, RayError, OSError, ConnectionError) as error:
        cause = getattr(error, "cause", None) or error
        print(f"centernet-detect-ray: error: {cause}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    sys.exit(status)


def run(args: argparse.Namespace) -> int:
    """Detect in the images that have no results yet; return the exit status."""
    package = load_package(args.package)
    output = locate(args.output)
    plan = _plan(args, package, output)
    missing = missing_chunks(output, plan)
    total, began_at = ChunkCounts(0, 0, 0), time.perf_counter()
    images = sum(plan.chunks["count"].take(missing).to_pylist())
    if missing:
        connect(args.address)
    with progress_bar(quiet=args.quiet, total=images, unit=" images", desc="detect") as bar:
        actors = Actors(args.min_actors, args.max_actors, args.num_cpus, args.num_gpus)
        counts = detect_chunks(str(args.package), args.output, plan, missing, actors)
        for one in counts if missing else ():
            total = ChunkCounts(*map(sum, zip(total, one, strict=True)))
            bar.update(one.images)
    if not args.quiet:
        seconds = time.perf_counter() - began_at
        print(
            f"{total.images} images in {seconds:.1f} s ({total.images / seconds:.1f} images/s), "
            f"{total.detections} detections, {total.failed} images failed",
            file=sys.stderr,
        )
    if args.coco is not None:
        with args.coco.open("w") as file:
            write_coco(output, plan, package.manifest, file)
    return 1 if total.failed else 0


def _plan(args: argparse.Namespace, package: ModelPackage, output: Location) -> Plan:
    given = {name: getattr(args, name) for name in DETECTION_OPTIONS}
    options = {name: value for name, value in given.items() if value is not None}
    complete_options(OptionRules(package.manifest), options)
    model = {"model": package.manifest.name, "version": package.manifest.version}
    description = model | {"options": options}
    plan = read_plan(output, {"source": args.input, "column": args.image_column, **description})
    if plan is None:
        plan = make_plan(args.input, args.image_column, args.images_per_file, description)
        write_plan(output, plan)
    elif not args.resume:
        raise BulkError(
            f"--output {args.output} has results: continue the run with --resume, or delete it."
        )
    return plan


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "centernet-detect-ray",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        *("input",),
        metavar="INPUT",
        help="folder (its images, recursively), Parquet file, or folder with Parquet files; a path "
        "on all nodes, or a URI such as s3://bucket/images",
    )
    parser.add_argument(
        *("--package",), type=Path, required=True, help="model package, at this path on all nodes"
    )
    parser.add_argument(
        "--output", required=True, help="folder of the results; a path on all nodes, or a URI"
    )
    parser.add_argument(
        *("--resume",),
        action="store_true",
        help="continue the run that --output belongs to: detect in the images without results",
    )
    parser.add_argument("--coco", type=Path, help="write a COCO dataset to this file, too")
    parser.add_argument(
        *("--image-column",),
        default="image",
        help="column of Parquet files with encoded images, or with their paths or URIs "
        "(default: image)",
    )
    parser.add_argument(
        *("--images-per-file",),
        type=positive,
        default=1000,
        help="images of each file of results, of which an interruption loses those that are not "
        "complete (default: 1000)",
    )
    parser.add_argument(
        "--address",
        help="address of the Ray cluster (default: RAY_ADDRESS; without one, this machine)",
    )
    pool = parser.add_argument_group("actors, each with an engine of its own")
    pool.add_argument("--min-actors", type=positive, default=1, help="(default: 1)")
    pool.add_argument("--max-actors", type=positive, default=1, help="(default: 1)")
    pool.add_argument("--num-cpus", type=float, default=1, help="cores of each (default: 1)")
    pool.add_argument("--num-gpus", type=float, default=0, help="GPUs of each (default: 0)")
    add_quiet_option(parser)
    add_version_option(parser)
    add_detection_options(parser)
    return parser
