"""Formats of detection responses: which one a request asks for, and the conversions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic_core import from_json
from pydantic_core import to_json as dump_json
from starlette.requests import Request

from client.formats import coco_result, kitti_line
from client.results import Detection, DetectionResult, parse_result
from model_package import KeypointsDecoder, ModelManifest
from service.errors import InvalidOptionError, NotAcceptableError
from service.http.query_parameters import FORMAT_PARAMETER
from service.http.request_body import BodyFields
from service.http.responses import to_json
from service.http.schemas import DetectResponse

FIRST_IMAGE_ID = 1
"""The ``image_id`` of the first image of a request in COCO results, as ``centernet-detect`` counts
images."""


@dataclass(frozen=True)
class ResponseFormat:
    """A format of responses: its value of ``format`` and its media type.

    Media types in ``Accept`` select it as well.
    """

    name: str
    media_type: str


NATIVE = ResponseFormat("json", "application/json")
COCO = ResponseFormat("coco", "application/vnd.coco.results+json")
KITTI = ResponseFormat("kitti", "text/plain")
ROBOFLOW = ResponseFormat("roboflow", "application/vnd.roboflow.predictions+json")
PNG = ResponseFormat("png", "image/png")
JPEG = ResponseFormat("jpeg", "image/jpeg")
IMAGE_FORMATS = (PNG, JPEG)
"""Formats that are the annotated image."""
DETECT_FORMATS = (NATIVE, COCO, KITTI, ROBOFLOW, *IMAGE_FORMATS)
"""Formats of the response to one image, in the order of preference where a client has none."""
BATCH_FORMATS = (NATIVE, COCO)
"""Formats of the response to several images."""
_MAX_ACCEPT_CHARACTERS = 2000
_NATIVE_ACCEPT = frozenset({None, "", "*/*", NATIVE.media_type})


class RequestedFormat:
    """The format that a request asks for: in its query string, else in its body, else ``Accept``.

    ``accepted``: the formats of the endpoint, the first of which is the default. Raises
    :class:`InvalidOptionError` and :class:`NotAcceptableError`.
    """

    def __init__(self, request: Request, accepted: tuple[ResponseFormat, ...]) -> None:
        self._accepted = accepted
        names = (
            request.query_params.getlist(FORMAT_PARAMETER)
            if b"format" in request.scope["query_string"]
            else ()
        )
        self._is_explicit = bool(names)
        self.format = (
            self._named(names) if names else _negotiated(request.headers.get("accept"), accepted)
        )

    def take_from(self, fields: BodyFields) -> BodyFields:
        """Read the field ``format`` of a body, and return the other fields."""
        if FORMAT_PARAMETER not in fields:
            return fields
        names = fields[FORMAT_PARAMETER]
        if self._is_explicit:
            raise InvalidOptionError(
                f"format: received {self.format.name!r} in the query string and {names!r:.100} in "
                "the body. Give it once."
            )
        self.format = self._named(names)
        return {name: values for name, values in fields.items() if name != FORMAT_PARAMETER}

    def _named(self, names: Sequence[Any]) -> ResponseFormat:
        by_name = {one.name: one for one in self._accepted}
        if len(names) != 1 or names[0] not in by_name:
            raise InvalidOptionError(
                f"format: received {', '.join(map(str, names))!r:.100}, accepted is one of "
                f"{', '.join(by_name)}."
            )
        return by_name[names[0]]


def _negotiated(accept: str | None, accepted: tuple[ResponseFormat, ...]) -> ResponseFormat:
    """Return the format that an ``Accept`` header (RFC 9110) prefers."""
    if accept in _NATIVE_ACCEPT or accept is None:
        return accepted[0]
    return _preferred(accept[:_MAX_ACCEPT_CHARACTERS], accepted)


# A client sends the same header with every request, and parsing that of a browser takes 0.1 ms.
@lru_cache(maxsize=64)
def _preferred(accept: str, accepted: tuple[ResponseFormat, ...]) -> ResponseFormat:
    ranges = [_media_range(item) for item in accept.split(",")]
    weights = [_weight(ranges, one.media_type) for one in accepted]
    best = max(weights)
    if best <= 0:
        raise NotAcceptableError(
            f"Accept: received {accept!r:.200}; the response has one of the types "
            f"{', '.join(one.media_type for one in accepted)}. Accept one of them, or */*."
        )
    return accepted[weights.index(best)]


def _media_range(item: str) -> tuple[str, float]:
    """Return a media range and its weight; 1 if that is not a number."""
    media_type, *parameters = (part.strip().lower() for part in item.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return media_type, float(value)
            except ValueError:
                break
    return media_type, 1.0


def _weight(ranges: Sequence[tuple[str, float]], media_type: str) -> float:
    """Return the weight of the most specific range that contains the media type, else 0."""
    for pattern in (media_type, media_type.partition("/")[0] + "/*", "*/*"):
        weights = [weight for name, weight in ranges if name == pattern]
        if weights:
            return max(weights)
    return 0.0


def as_received(response: DetectResponse) -> DetectionResult:
    """Return a response as clients receive it, with rounded numbers."""
    return parse_result(from_json(to_json(response)))


def coco_json(results: Sequence[DetectionResult]) -> bytes:
    """Return a COCO results list; the image id is the position of the image in the request."""
    return dump_json(
        [
            coco_result(detection, image_id)
            for image_id, result in enumerate(results, FIRST_IMAGE_ID)
            for detection in result.detections
        ]
    )


def _kitti_text(result: DetectionResult, _: ModelManifest) -> bytes:
    return "".join(map(kitti_line, result.detections)).encode()


def roboflow_predictions(result: DetectionResult, manifest: ModelManifest) -> dict[str, Any]:
    """Return the response of Roboflow's inference server: boxes by their centers."""
    return {
        "inference_id": result.request_id,
        "time": round(sum(result.timing_ms.values()) / 1000, 6),
        "image": {"width": result.width, "height": result.height},
        "predictions": list(_roboflow_boxes(result, manifest)),
    }


def _roboflow_boxes(result: DetectionResult, manifest: ModelManifest) -> Iterator[dict[str, Any]]:
    names = _keypoint_names(manifest)
    for index, detection in enumerate(result.detections):
        x1, y1, x2, y2 = detection.bbox
        prediction = {
            "x": round((x1 + x2) / 2, 4),
            "y": round((y1 + y2) / 2, 4),
            "width": round(x2 - x1, 3),
            "height": round(y2 - y1, 3),
            "confidence": detection.score,
            "class": detection.class_name,
            "class_id": detection.class_id,
            "detection_id": f"{result.request_id}-{index}",
        }
        if detection.keypoints:
            prediction["keypoints"] = _roboflow_keypoints(detection, names)
        if detection.octagon:
            prediction["points"] = [{"x": x, "y": y} for x, y in detection.octagon]
        yield prediction


def _roboflow_keypoints(detection: Detection, names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"x": point.x, "y": point.y, "confidence": point.score, "class_id": index, "class": name}
        for index, (point, name) in enumerate(zip(detection.keypoints, names, strict=True))
    ]


def _keypoint_names(manifest: ModelManifest) -> Sequence[str]:
    decoder = manifest.decoder
    return decoder.keypoints if isinstance(decoder, KeypointsDecoder) else ()


CONVERSIONS: Mapping[ResponseFormat, Callable[[DetectionResult, ModelManifest], bytes]] = {
    COCO: lambda result, _: coco_json([result]),
    KITTI: _kitti_text,
    ROBOFLOW: lambda result, manifest: dump_json(roboflow_predictions(result, manifest)),
}
"""Functions that return the body of a response to one image."""
