"""``centernet-detect``: send an image to a running service; print and draw the detections."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from client.drawing import draw_detections
from client.http_client import ClientError, ServiceClient

DETECTION_OPTIONS = (
    "score_threshold",
    "top_k",
    "classes",
    "flip",
    "scales",
    "keep_resolution",
    "soft_nms",
    "fx",
    "fy",
    "cx",
    "cy",
    "projection",
)
"""Command-line options that are sent as query parameters of the same name."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exit with status 1 when there is no response or it cannot be written."""
    args = build_parser().parse_args(arguments)
    options = {
        name: value for name in DETECTION_OPTIONS if (value := getattr(args, name)) is not None
    }
    try:
        if args.output is not None:
            _check_output(args.output)
        with ServiceClient(args.url) as client:
            response = client.detect(args.image.read_bytes(), model=args.model, options=options)
            if args.output is not None:
                _draw(args.image, response, _skeleton(client, response), args.output)
    except (OSError, ClientError) as error:
        print(f"centernet-detect: error: {error}", file=sys.stderr)
        sys.exit(1)
    try:
        _print(response["detections"])
    except BrokenPipeError:
        # The reader closed the pipe (``| head``). Python flushes stdout once more at exit, which
        # would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="centernet-detect", description=__doc__)
    parser.add_argument("image", type=Path, help="a JPEG, PNG, WebP or BMP file")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="base URL of the service")
    parser.add_argument("--model", help="name of the model; default: the service's default model")
    parser.add_argument("--output", type=Path, help="write the image with the detections drawn on")
    parser.add_argument("--score-threshold", type=float, help="leave out lower scores")
    parser.add_argument("--top-k", type=int, help="return at most this many detections")
    parser.add_argument("--classes", nargs="+", help="return only these classes")
    parser.add_argument(
        "--scales", type=float, nargs="+", help="detect at each scale and merge the results"
    )
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--flip", action=switch, help="average over the flipped image")
    parser.add_argument("--keep-resolution", action=switch, help="pad instead of resizing")
    parser.add_argument("--soft-nms", action=switch, help="lower the scores of overlapping boxes")
    camera = parser.add_argument_group(
        "camera, for 3D models", "in pixels of the image after its EXIF orientation is applied"
    )
    for name in ("fx", "fy", "cx", "cy"):
        camera.add_argument(f"--{name}", type=float, metavar="PIXELS")
    camera.add_argument(
        "--projection", type=float, nargs=12, help="the 3 x 4 camera matrix instead, row by row"
    )
    return parser


def _check_output(path: Path) -> None:
    """Raise ``OSError`` if an image cannot be written to ``path``, before the request is sent."""
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise OSError(f"--output {path}: the name must end in .png, .jpg or the like")
    if not path.parent.is_dir():
        raise OSError(f"--output {path}: there is no directory {path.parent}")


def _draw(
    image: Path, response: Mapping[str, Any], skeleton: Sequence[tuple[int, int]], output: Path
) -> None:
    with Image.open(image) as opened:
        upright = ImageOps.exif_transpose(opened)
        draw_detections(upright, response["detections"], skeleton).save(output)


def _print(detections: Sequence[Mapping[str, Any]]) -> None:
    for detection in detections:
        box = " ".join(f"{coordinate:9.2f}" for coordinate in detection["bbox"])
        text = f"{detection['score']:.3f}  {box}  {detection['class_name']}"
        print(text + _format_box_3d(detection))
    sys.stdout.flush()


def _format_box_3d(detection: Mapping[str, Any]) -> str:
    """Return the size, location and rotation of the 3D box; empty for 2D detections."""
    if "box3d" not in detection:
        return ""
    box = detection["box3d"]
    size = " x ".join(f"{metres:.2f}" for metres in box["dimensions_hwl"])
    location = " ".join(f"{metres:.2f}" for metres in box["location_xyz"])
    return f"  {size} m at {location}, turned {box['rotation_y']:.2f} rad"


def _skeleton(client: ServiceClient, response: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return the pairs of keypoints to connect; empty where no detection has keypoints."""
    if not any("keypoints" in detection for detection in response["detections"]):
        return []
    model = client.get_model(response["model"]["name"])
    return [(start, end) for start, end in model["skeleton"]]
