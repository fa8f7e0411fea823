"""What travels over the wire; the OpenAPI document is made from these classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter
from pydantic.json_schema import SkipJsonSchema

from model_package import CenterPosesDecoder, ModelManifest
from service.decoders.types import Detections
from service.detector import Detector, Prediction
from service.http.responses import TASK_FIELDS, Box3D, Keypoint

Box = Annotated[
    list[float],
    Field(
        min_length=4,
        max_length=4,
        description="x1, y1, x2, y2 in pixels of the upright original image (EXIF orientation "
        "applied), to 0.001; integer coordinates are pixel centers; not clipped to the image.",
        examples=[[101.5, 20.25, 180.75, 97.0]],
    ),
]
_UprightPixels = Annotated[
    int, Field(description="Pixels, after the EXIF orientation was applied.")
]

# What each answer is made of are dataclasses: nobody has to check our own numbers, and pydantic
# writes their JSON without having made them.


@dataclass(slots=True)
class ModelReference:
    """The model that answered."""

    name: str
    version: str


@dataclass(slots=True)
class ImageFacts:
    """The image as it was evaluated."""

    width: _UprightPixels
    height: _UprightPixels
    orientation_applied: Annotated[
        bool, Field(description="Whether EXIF turned or flipped the image.")
    ]


@dataclass(slots=True)
class Detection:
    """One object; what the model's task does not find is absent, never null."""

    class_id: Annotated[int, Field(description="Index into the model's classes.")]
    class_name: str
    score: Annotated[float, Field(description="0 to 1.")]
    bbox: Box
    keypoints: Annotated[
        list[Keypoint] | SkipJsonSchema[None],
        Field(
            description="Pose models: the keypoints in the order of the model's `keypoints`, see "
            "GET /models/{name}."
        ),
    ] = None
    box3d: Annotated[Box3D | SkipJsonSchema[None], Field(description="3D models: the 3D box.")] = (
        None
    )


@dataclass(slots=True)
class DetectResponse:
    """The objects in one image, best score first."""

    model: ModelReference
    image: ImageFacts
    detections: list[Detection]
    timing_ms: Annotated[
        dict[str, float],
        Field(
            description="Milliseconds per stage: prepare (decode, resize), queue, infer, "
            "postprocess."
        ),
    ]
    request_id: str


class ModelOptions(BaseModel):
    """What requests may ask of a model; lists hold the accepted values, the model's own first."""

    flip: list[bool]
    keep_resolution: list[bool]
    soft_nms: list[bool] = Field(
        description="Without the option, several scales are joined with soft-NMS."
    )
    max_scales: int = Field(description="1: only the scale 1.")
    camera: bool = Field(description="Whether fx, fy, cx and cy, or projection, mean anything.")


class ModelFacts(BaseModel):
    """A loaded model."""

    name: str
    version: str
    description: str
    task: str
    classes: tuple[str, ...]
    input_width: int
    input_height: int
    top_k: int
    score_threshold: float
    options: ModelOptions
    engine: str
    default: bool


class ModelDetails(ModelFacts):
    """A loaded model with its whole manifest."""

    manifest: ModelManifest


class PoseModelDetails(ModelDetails):
    """A loaded pose model with its whole manifest."""

    keypoints: tuple[str, ...] = Field(description="Names, in the order of `keypoints`.")
    skeleton: tuple[tuple[int, int], ...] = Field(
        description="Pairs of indices into `keypoints` to draw a line between."
    )


class ModelList(BaseModel):
    """Every loaded model."""

    models: list[ModelFacts]


class Health(BaseModel):
    """The state of the service."""

    status: str


@dataclass(slots=True)
class Problem:
    """An error (RFC 9457), with members for programs."""

    type: str
    title: str
    status: int
    detail: Annotated[str, Field(description="What was received, what is accepted, what to do.")]
    instance: str
    code: Annotated[str, Field(description="Stable name of the error.")]
    error: Annotated[
        str, Field(description="The detail again, where clients of other servers look.")
    ]
    request_id: str
    retryable: Annotated[bool, Field(description="Whether the same request may succeed later.")]


@dataclass(slots=True)
class BatchResponse:
    """The answer for each image of a request, in their order: detections or what is wrong."""

    results: list[DetectResponse | Problem]


_JSON: Mapping[type[Any], TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (DetectResponse, BatchResponse, Problem)
}


def to_json(answer: DetectResponse | BatchResponse | Problem) -> bytes:
    """The answer as it travels."""
    return _JSON[type(answer)].dump_json(answer, exclude_none=True)


def to_response(manifest: ModelManifest, prediction: Prediction, request_id: str) -> DetectResponse:
    """Name the classes and round the numbers of a prediction."""
    return DetectResponse(
        model=ModelReference(name=manifest.name, version=manifest.version),
        image=ImageFacts(
            width=prediction.image_width_px,
            height=prediction.image_height_px,
            orientation_applied=prediction.orientation_applied,
        ),
        detections=_detections(manifest, prediction.detections),
        timing_ms={
            stage: round(1000 * seconds, 3) for stage, seconds in prediction.stage_s.items()
        },
        request_id=request_id,
    )


def _detections(manifest: ModelManifest, found: Detections) -> list[Detection]:
    rows = zip(
        found.class_ids.tolist(),
        found.scores.astype(float).round(6).tolist(),
        found.boxes_xyxy.round(3).tolist(),
        TASK_FIELDS[type(found)](found),
        strict=True,
    )
    return [
        Detection(class_id, manifest.classes[class_id], score, box, **of_task)
        for class_id, score, box, of_task in rows
    ]


def model_facts(predictor: Detector, *, is_default: bool) -> ModelFacts:
    """What a list of models says of one."""
    manifest, rules = predictor.manifest, predictor.rules
    return ModelFacts(
        name=manifest.name,
        version=manifest.version,
        description=manifest.description,
        task=manifest.decoder.kind,
        classes=manifest.classes,
        input_width=manifest.input.width_px,
        input_height=manifest.input.height_px,
        top_k=manifest.decoder.top_k,
        score_threshold=manifest.decoder.score_threshold,
        options=ModelOptions(
            flip=list(rules.flip),
            keep_resolution=list(rules.keep_resolution),
            soft_nms=list(rules.soft_nms),
            max_scales=rules.max_scales,
            camera=rules.has_camera,
        ),
        engine=predictor.engine_description,
        default=is_default,
    )


def model_details(predictor: Detector, *, is_default: bool) -> ModelDetails:
    """Everything there is to say of a model."""
    facts = model_facts(predictor, is_default=is_default)
    decoder = predictor.manifest.decoder
    every = {**dict(facts), "manifest": predictor.manifest}
    if isinstance(decoder, CenterPosesDecoder):
        return PoseModelDetails(**every, keypoints=decoder.keypoints, skeleton=decoder.skeleton)
    return ModelDetails(**every)
