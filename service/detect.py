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


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit with status 1 when the service refuses the picture or cannot be reached."""
    parser = argparse.ArgumentParser(prog="centernet-detect", description=__doc__)
    parser.add_argument("picture", type=Path, help="a JPEG, PNG, WebP or BMP file")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the service listens")
    parser.add_argument("--model", help="a model by name; without it, the default one")
    parser.add_argument("--score-threshold", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--classes", nargs="+", help="show only these")
    parser.add_argument("--output", type=Path, help="write the picture with the boxes drawn on it")
    given = parser.parse_args(arguments)
    options = {
        name: value
        for name in ("score_threshold", "top_k", "classes")
        if (value := getattr(given, name)) is not None
    }
    try:
        answer = request_detections(
            given.url, given.picture.read_bytes(), model=given.model, options=options
        )
    except (OSError, RuntimeError) as error:
        print(f"centernet-detect: error: {error}", file=sys.stderr)
        sys.exit(1)
    for detection in answer["detections"]:
        box = " ".join(f"{coordinate:9.2f}" for coordinate in detection["bbox"])
        print(f"{detection['score']:.3f}  {box}  {detection['class_name']}")
    if given.output is not None:
        with Image.open(given.picture) as picture:
            upright = ImageOps.exif_transpose(picture)
            draw_detections(upright, answer["detections"]).save(given.output)


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
    try:
        with urlopen(request, timeout=60) as response:
            answer: dict[str, Any] = json.load(response)
    except HTTPError as error:
        with error:
            raise RuntimeError(_words_of(error)) from None
    except URLError as error:
        raise OSError(f"{url} cannot be reached: {error.reason}") from None
    return answer


def _words_of(error: HTTPError) -> str:
    try:
        return f"{error.code} {json.load(error)['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}: is this a CenterNet service?"
