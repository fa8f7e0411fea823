"""Detect objects in images and videos, with a running service or a model package.

Detections are written as JSON Lines, as a table if standard output is a terminal, or as --format
says. Exit status: 0; 1 if some images could not be processed; 2 if the run could not be started or
completed.
"""

import argparse
import os
from pathlib import Path

from client.command.outputs import FORMATS
from client.protocol import DetectOptions
from command_line.version import add_version_option

DETECTION_OPTIONS = tuple(DetectOptions.__annotations__)
"""Command-line options that are request options of the same name."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="centernet-detect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        *("inputs",),
        nargs="+",
        metavar="INPUT",
        help="image or video file, folder (its images, recursively), pattern such as "
        "'images/*.jpg', camera:0, URL of a video stream, or - for an image from standard input",
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="base URL of the service")
    parser.add_argument(
        "--api-key",
        default=os.environ.get("CENTERNET_API_KEY") or None,
        help="API key of the service (default: the environment variable CENTERNET_API_KEY)",
    )
    parser.add_argument("--model", help="name of the model; default: the service's default model")
    parser.add_argument(
        "--package", type=Path, help="run this model package in the process, without a service"
    )
    parser.add_argument(
        "--format",
        choices=(*FORMATS, "kitti"),
        help="of the detections (default: text on a terminal, else jsonl)",
    )
    parser.add_argument(
        "--output", type=Path, help="write detections to this file; for kitti, a folder"
    )
    parser.add_argument(
        *("--draw",),
        type=Path,
        help="write annotated images: an image file for one image, a video file (.mp4, .avi, .mkv) "
        "for one video, else a folder",
    )
    parser.add_argument(
        "--birds-eye", action="store_true", help="draw 3D boxes from above, too, beside the image"
    )
    parser.add_argument(
        *("--resume",),
        action="store_true",
        help="continue the JSON Lines file --output: skip the images that it contains",
    )
    parser.add_argument(
        "--concurrency", type=positive, help="images at a time (default: 32 with a service)"
    )
    parser.add_argument(
        "--quiet", action="store_true", help="print neither progress nor the summary"
    )
    add_version_option(parser)
    add_detection_options(parser)
    return parser


def add_detection_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of requests, named as in :data:`DETECTION_OPTIONS`."""
    group = parser.add_argument_group("detection options; the defaults are those of the model")
    group.add_argument("--score-threshold", type=float, help="leave out lower scores")
    group.add_argument("--top-k", type=int, help="return at most this many detections")
    group.add_argument("--classes", nargs="+", help="return only these classes")
    group.add_argument(
        "--scales", type=float, nargs="+", help="detect at each scale and merge the results"
    )
    switch = argparse.BooleanOptionalAction
    group.add_argument("--flip", action=switch, help="average over the flipped image")
    group.add_argument("--keep-resolution", action=switch, help="pad instead of resizing")
    group.add_argument("--soft-nms", action=switch, help="lower the scores of overlapping boxes")
    camera = parser.add_argument_group(
        "camera, for 3D models", "in pixels of the image after its EXIF orientation is applied"
    )
    for name in ("fx", "fy", "cx", "cy"):
        camera.add_argument(f"--{name}", type=float, metavar="PIXELS")
    camera.add_argument(
        "--projection", type=float, nargs=12, help="the 3 x 4 camera matrix instead, row by row"
    )


def positive(text: str) -> int:
    """Return a number of at least 1, as the type of an argument."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"received {value}; expected at least 1")
    return value
