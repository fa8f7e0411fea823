"""``centernet-detect``: send an image to a running service, print and draw the answer."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

from PIL import Image, ImageOps

from client.drawing import draw_detections
from service.options import DetectParameters

_NO_SERVICE = "is this a CenterNet service?"


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit with status 1 when there is no answer, or when it cannot be written."""
    given = _parser().parse_args(arguments)
    options = {
        name: _in_query(value)
        for name in DetectParameters.model_fields
        if (value := getattr(given, name)) is not None
    }
    try:
        if given.output is not None:
            _check_output(given.output)
        answer = request_detections(
            given.url, given.image.read_bytes(), model=given.model, options=options
        )
        if given.output is not None:
            _draw(given.image, answer, _skeleton(given.url, answer), given.output)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"centernet-detect: error: {error}", file=sys.stderr)
        sys.exit(1)
    try:
        _print(answer["detections"])
    except BrokenPipeError:
        # Whoever read has seen enough (``| head``). Python flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="centernet-detect", description=__doc__)
    parser.add_argument("image", type=Path, help="a JPEG, PNG, WebP or BMP file")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the service listens")
    parser.add_argument("--model", help="a model by name; without it, the default one")
    parser.add_argument("--output", type=Path, help="write the image with the answer drawn on it")
    parser.add_argument("--score-threshold", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--classes", nargs="+", help="show only these")
    parser.add_argument("--scales", type=float, nargs="+", help="join what is found at these")
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--flip", action=switch, help="average over the flipped image")
    parser.add_argument("--keep-resolution", action=switch, help="pad instead of resizing")
    parser.add_argument("--soft-nms", action=switch, help="lower the scores of overlapping boxes")
    camera = parser.add_argument_group("camera of a 3D model", "for pixels of the upright image")
    for name in ("fx", "fy", "cx", "cy"):
        camera.add_argument(f"--{name}", type=float, metavar="PIXELS")
    camera.add_argument("--projection", type=float, nargs=12, help="or its matrix, row by row")
    return parser


def _check_output(path: Path) -> None:
    """Raise ``OSError`` for an image that cannot be written, before the work of an answer."""
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise OSError(f"--output {path}: the name must end in .png, .jpg or the like")
    if not path.parent.is_dir():
        raise OSError(f"--output {path}: there is no directory {path.parent}")


def _draw(
    image: Path, answer: dict[str, Any], skeleton: Sequence[tuple[int, int]], output: Path
) -> None:
    with Image.open(image) as opened:
        upright = ImageOps.exif_transpose(opened)
        draw_detections(upright, answer["detections"], skeleton).save(output)


def _print(detections: Sequence[dict[str, Any]]) -> None:
    for detection in detections:
        box = " ".join(f"{coordinate:9.2f}" for coordinate in detection["bbox"])
        print(f"{detection['score']:.3f}  {box}  {detection['class_name']}{_is_3d(detection)}")
    sys.stdout.flush()


def _in_query(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _is_3d(detection: dict[str, Any]) -> str:
    """What a detection's line says of its 3D box."""
    if "box3d" not in detection:
        return ""
    box = detection["box3d"]
    size = " x ".join(f"{metres:.2f}" for metres in box["dimensions_hwl"])
    place = " ".join(f"{metres:.2f}" for metres in box["location_xyz"])
    return f"  {size} m at {place}, turned {box['rotation_y']:.2f} rad"


def _skeleton(url: str, answer: dict[str, Any]) -> list[tuple[int, int]]:
    """Which keypoints to draw lines between, where the answer has keypoints."""
    if not any("keypoints" in detection for detection in answer["detections"]):
        return []
    name = quote(answer["model"]["name"], safe="")
    pairs = ask_service(f"{url.rstrip('/')}/models/{name}", "skeleton")["skeleton"]
    return [(start, end) for start, end in pairs]


def request_detections(
    url: str, body: bytes, *, model: str | None = None, options: dict[str, Any] | None = None
) -> dict[str, Any]:
    """POST one encoded image; return the answer's JSON.

    Raises ``RuntimeError`` with the service's own words when it refuses, ``OSError`` when it
    cannot be reached, ``ValueError`` when ``url`` is none.
    """
    route = "/detect" if model is None else f"/models/{quote(model, safe='')}/detect"
    request = Request(
        f"{url.rstrip('/')}{route}?{urlencode(options or {}, doseq=True)}",
        data=body,
        headers={"Content-Type": "application/octet-stream"},
    )
    return ask_service(request, "detections")


def ask_service(request: Request | str, member: str) -> dict[str, Any]:
    """Return the JSON object of an answer, which must have ``member``; ``request`` may be a URL.

    Raises as :func:`request_detections` does.
    """
    if isinstance(request, str):
        request = Request(request)
    try:
        with urlopen(request, timeout=60) as response:
            content = response.read()
    except HTTPError as error:
        with error:
            raise RuntimeError(_words_of(error)) from None
    except URLError as error:
        raise OSError(f"{request.full_url} cannot be reached: {error.reason}") from None
    except HTTPException as error:
        raise OSError(f"{request.full_url} gave a broken answer: {error!r}") from None
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or member not in answer:
        raise RuntimeError(f"{request.full_url} did not answer with {member}: {_NO_SERVICE}")
    return answer


def _words_of(error: HTTPError) -> str:
    try:
        return f"{error.code} {json.load(error)['detail']}"
    except (ValueError, KeyError, TypeError, HTTPException, OSError):
        return f"{error.code} {error.reason}: {_NO_SERVICE}"
