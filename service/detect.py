"""``centernet-detect``: send a picture to a running service, print and draw the answer."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

from PIL import Image, ImageOps

from service.drawing import draw_detections
from service.parameters import DetectParameters


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit with status 1 when the service refuses the picture or cannot be reached."""
    given = _parser().parse_args(arguments)
    options = {
        name: _in_query(value)
        for name in DetectParameters.model_fields
        if (value := getattr(given, name)) is not None
    }
    try:
        answer = request_detections(
            given.url, given.picture.read_bytes(), model=given.model, options=options
        )
        skeleton = _skeleton(given.url, answer) if given.output is not None else ()
    except (OSError, RuntimeError) as error:
        print(f"centernet-detect: error: {error}", file=sys.stderr)
        sys.exit(1)
    for detection in answer["detections"]:
        box = " ".join(f"{coordinate:9.2f}" for coordinate in detection["bbox"])
        print(f"{detection['score']:.3f}  {box}  {detection['class_name']}{_in_space(detection)}")
    if given.output is not None:
        with Image.open(given.picture) as picture:
            upright = ImageOps.exif_transpose(picture)
            draw_detections(upright, answer["detections"], skeleton).save(given.output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="centernet-detect", description=__doc__)
    parser.add_argument("picture", type=Path, help="a JPEG, PNG, WebP or BMP file")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the service listens")
    parser.add_argument("--model", help="a model by name; without it, the default one")
    parser.add_argument("--output", type=Path, help="write the picture with the answer drawn on it")
    parser.add_argument("--score-threshold", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--classes", nargs="+", help="show only these")
    parser.add_argument("--scales", type=float, nargs="+", help="join what is found at these")
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--flip", action=switch, help="average over the mirror image")
    parser.add_argument("--keep-resolution", action=switch, help="pad instead of resizing")
    parser.add_argument("--soft-nms", action=switch, help="lower the scores of overlapping boxes")
    camera = parser.add_argument_group("camera of a 3D model", "for pixels of the upright picture")
    for name in ("fx", "fy", "cx", "cy"):
        camera.add_argument(f"--{name}", type=float, metavar="PIXELS")
    camera.add_argument("--projection", type=float, nargs=12, help="or its matrix, row by row")
    return parser


def _in_query(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _in_space(detection: dict[str, Any]) -> str:
    """What a detection's line says of its box in space."""
    if "box3d" not in detection:
        return ""
    box = detection["box3d"]
    size = " x ".join(f"{metres:.2f}" for metres in box["dimensions_hwl"])
    place = " ".join(f"{metres:.2f}" for metres in box["location_xyz"])
    return f"  {size} m at {place}, turned {box['rotation_y']:.2f} rad"


def _skeleton(url: str, answer: dict[str, Any]) -> list[tuple[int, int]]:
    """Which joints to draw lines between, where the answer has joints."""
    if not any("keypoints" in detection for detection in answer["detections"]):
        return []
    name = quote(answer["model"]["name"], safe="")
    pairs = _ask(Request(f"{url.rstrip('/')}/models/{name}"))["skeleton"]
    return [(start, end) for start, end in pairs]


def request_detections(
    url: str, body: bytes, *, model: str | None = None, options: dict[str, Any] | None = None
) -> dict[str, Any]:
    """POST one encoded picture; return the answer's JSON.

    Raises ``RuntimeError`` with the service's own words when it refuses, ``OSError`` when it
    cannot be reached.
    """
    route = "/detect" if model is None else f"/models/{quote(model, safe='')}/detect"
    request = Request(
        f"{url.rstrip('/')}{route}?{urlencode(options or {}, doseq=True)}",
        data=body,
        headers={"Content-Type": "application/octet-stream"},
    )
    return _ask(request)


def _ask(request: Request) -> dict[str, Any]:
    try:
        with urlopen(request, timeout=60) as response:
            answer: dict[str, Any] = json.load(response)
    except HTTPError as error:
        with error:
            raise RuntimeError(_words_of(error)) from None
    except URLError as error:
        raise OSError(f"{request.full_url} cannot be reached: {error.reason}") from None
    return answer


def _words_of(error: HTTPError) -> str:
    try:
        return f"{error.code} {json.load(error)['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}: is this a CenterNet service?"
