"""The responses of the service as typed objects."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from client.errors import InvalidResponseError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


Point = tuple[float, float]


class Keypoint(NamedTuple):
    """A keypoint in pixels of the upright image, and its score (0 to 1)."""

    x: float
    y: float
    score: float


@dataclass(frozen=True, slots=True)
class Box3D:
    """A 3D box in the camera frame (x right, y down, z forward), in KITTI's conventions.

    Attributes:
        dimensions_hwl: height, width and length in metres.
        location_xyz: center of the bottom face in metres.
        rotation_y: radians about the y axis; 0 when the length points along x.
        alpha: observation angle in radians.
        depth: metres, as predicted by the network.
        corners_px: eight corners in pixels of the upright image, bottom face, then top face (corner
            i is below corner i + 4); empty if a corner is behind the camera.
    """

    dimensions_hwl: tuple[float, float, float]
    location_xyz: tuple[float, float, float]
    rotation_y: float
    alpha: float
    depth: float
    corners_px: tuple[Point, ...] = ()


@dataclass(frozen=True, slots=True)
class Detection:
    """One detected object.

    Attributes:
        class_id: index into the classes of the model.
        class_name: its name.
        score: 0 to 1.
        bbox: x1, y1, x2, y2 in pixels of the upright image, not clipped to it.
        keypoints: in the order of the model's keypoints; empty for models and classes without.
        box3d: the 3D box; None for models without.
        extreme_points: x and y of the top, left, bottom and right point of the object in pixels of
            the upright image; empty for models without.
        octagon: approximate mask, eight points of a polygon, clockwise; empty for models without.
    """

    class_id: int
    class_name: str
    score: float
    bbox: tuple[float, float, float, float]
    keypoints: tuple[Keypoint, ...] = ()
    box3d: Box3D | None = None
    extreme_points: tuple[Point, ...] = ()
    octagon: tuple[Point, ...] = ()

    def scaled(self, scale: float) -> "Detection":
        """Return the detection in an image that was resized by ``scale``."""
        x1, y1, x2, y2 = (coordinate * scale for coordinate in self.bbox)
        keypoints = tuple(
            point._replace(x=point.x * scale, y=point.y * scale) for point in self.keypoints
        )
        box_3d = self.box3d
        if box_3d is not None:
            box_3d = replace(box_3d, corners_px=_scaled(box_3d.corners_px, scale))
        return replace(
            self,
            bbox=(x1, y1, x2, y2),
            keypoints=keypoints,
            box3d=box_3d,
            extreme_points=_scaled(self.extreme_points, scale),
            octagon=_scaled(self.octagon, scale),
        )


@dataclass(frozen=True)
class DetectionResult:
    """The detections of one image, best score first.

    The arrays need NumPy and are computed at each access.

    Attributes:
        model: name of the model.
        model_version: its version.
        width, height: size in pixels of the upright image (EXIF orientation applied).
        detections: the detected objects.
        timing_ms: milliseconds by stage of the service.
        request_id: identifier in the logs of the service.
        raw: the JSON object of the response.
    """

    model: str
    model_version: str
    width: int
    height: int
    detections: tuple[Detection, ...]
    timing_ms: Mapping[str, float]
    request_id: str
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def boxes_xyxy(self) -> "NDArray[np.float64]":
        """float64 (n, 4): x1, y1, x2, y2 in pixels."""
        return _array([one.bbox for one in self.detections], (len(self.detections), 4))

    @property
    def scores(self) -> "NDArray[np.float64]":
        """float64 (n,)."""
        return _array([one.score for one in self.detections], (len(self.detections),))

    @property
    def class_ids(self) -> "NDArray[np.int64]":
        """int64 (n,)."""
        ids = _array([one.class_id for one in self.detections], (len(self.detections),))
        return ids.astype("int64")

    @property
    def keypoints(self) -> "NDArray[np.float64]":
        """float64 (n, keypoints, 3): x and y in pixels, and the score; NaN for objects without."""
        count = max((len(one.keypoints) for one in self.detections), default=0)
        shape = (len(self.detections), count, 3)
        none = count * ((math.nan,) * 3,)
        return _array([one.keypoints or none for one in self.detections], shape)

    def to_supervision(self) -> Any:
        """Return ``supervision.Detections`` with the class names in ``data["class_name"]``.

        Needs the package ``supervision``; raises :class:`ImportError` without it.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError(
                "to_supervision() needs the package supervision: pip install supervision"
            ) from error
        import numpy as np

        return supervision.Detections(
            xyxy=self.boxes_xyxy.astype(np.float32),
            confidence=self.scores.astype(np.float32),
            class_id=self.class_ids,
            data={"class_name": np.array([one.class_name for one in self.detections], str)},
        )


@dataclass(frozen=True)
class Model:
    """A model of the service.

    Attributes:
        name, version: as in URLs and responses.
        task: the kind of the decoder: ``center_boxes``, ``center_poses``, ``center_boxes_3d``,
            ``center_poses_and_boxes_3d``, ``corner_pairs``, ``corner_triplets`` or
            ``extreme_points``.
        classes: names, by class id.
        top_k, score_threshold: defaults of the request options.
        engine: the runtime that executes the model.
        is_default: whether requests without the name of a model use it.
        keypoints, skeleton: names of the keypoints, and pairs of indices to connect. Empty for
            models without keypoints, and in the list of all models.
        raw: the JSON object of the response.
    """

    name: str
    version: str
    task: str
    classes: tuple[str, ...]
    top_k: int
    score_threshold: float
    engine: str
    is_default: bool
    keypoints: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


def parse_result(raw: Mapping[str, Any]) -> DetectionResult:
    """Read the response to an image. Raises :class:`InvalidResponseError`."""
    try:
        return DetectionResult(
            model=raw["model"]["name"],
            model_version=raw["model"]["version"],
            width=raw["image"]["width"],
            height=raw["image"]["height"],
            detections=tuple(map(parse_detection, raw["detections"])),
            timing_ms=raw["timing_ms"],
            request_id=raw["request_id"],
            raw=raw,
        )
    except (LookupError, TypeError, ValueError) as error:
        raise _invalid("POST /detect", error) from error


def parse_model(raw: Mapping[str, Any]) -> Model:
    """Read the description of a model. Raises :class:`InvalidResponseError`."""
    try:
        return Model(
            name=raw["name"],
            version=raw["version"],
            task=raw["task"],
            classes=tuple(raw["classes"]),
            top_k=raw["top_k"],
            score_threshold=raw["score_threshold"],
            engine=raw["engine"],
            is_default=raw["default"],
            keypoints=tuple(raw.get("keypoints", ())),
            skeleton=tuple((start, end) for start, end in raw.get("skeleton", ())),
            raw=raw,
        )
    except (LookupError, TypeError, ValueError) as error:
        raise _invalid("GET /models", error) from error


def parse_models(raw: Mapping[str, Any]) -> tuple[Model, ...]:
    """Read the list of models. Raises :class:`InvalidResponseError`."""
    models = raw.get("models")
    if not isinstance(models, list):
        raise _invalid("GET /models", KeyError("models"))
    return tuple(map(parse_model, models))


def parse_detection(raw: Mapping[str, Any]) -> Detection:
    """Read one of the detections of a response; raises LookupError, TypeError or ValueError."""
    x1, y1, x2, y2 = raw["bbox"]
    return Detection(
        class_id=raw["class_id"],
        class_name=raw["class_name"],
        score=raw["score"],
        bbox=(x1, y1, x2, y2),
        keypoints=tuple(Keypoint(*keypoint) for keypoint in raw.get("keypoints", ())),
        box3d=_parse_box_3d(raw["box3d"]) if "box3d" in raw else None,
        extreme_points=_parse_points(raw.get("extreme_points", ())),
        octagon=_parse_points(raw.get("octagon", ())),
    )


def _parse_points(raw: Sequence[Sequence[float]]) -> tuple[Point, ...]:
    return tuple((x, y) for x, y in raw)


def _scaled(points: Sequence[Point], scale: float) -> tuple[Point, ...]:
    return tuple((x * scale, y * scale) for x, y in points)


def _parse_box_3d(raw: Mapping[str, Any]) -> Box3D:
    height, width, length = raw["dimensions_hwl"]
    x, y, z = raw["location_xyz"]
    return Box3D(
        dimensions_hwl=(height, width, length),
        location_xyz=(x, y, z),
        rotation_y=raw["rotation_y"],
        alpha=raw["alpha"],
        depth=raw["depth"],
        corners_px=_parse_points(raw.get("corners_px", ())),
    )


def _invalid(request: str, error: Exception) -> InvalidResponseError:
    return InvalidResponseError(
        f"The response to {request} cannot be read ({type(error).__name__}: {error}): is this a "
        "CenterNet service?"
    )


def _array(values: Any, shape: tuple[int, ...]) -> "NDArray[np.float64]":
    try:
        import numpy as np
    except ImportError as error:
        raise ImportError("The arrays of a result need NumPy: pip install numpy") from error
    return np.array(values, np.float64).reshape(shape)
