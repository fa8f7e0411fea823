"""What travels over the wire; the OpenAPI document is made from these classes."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from model_package import ModelManifest
from service.predictor import Prediction

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


class DetectParameters(BaseModel):
    """Options of one request, in its query string."""

    model_config = ConfigDict(extra="forbid")

    score_threshold: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="Leave out detections below this score; without it, the model's own value.",
    )
    top_k: int | None = Field(
        None, ge=1, description="Return at most this many detections, best first."
    )
    classes: list[str] | None = Field(
        None, description="Return only these classes, by name; repeat the option for several."
    )


class ModelReference(BaseModel):
    """The model that answered."""

    name: str
    version: str


class ImageFacts(BaseModel):
    """The image as it was judged."""

    width: int = Field(description="Pixels, after the EXIF orientation was applied.")
    height: int = Field(description="Pixels, after the EXIF orientation was applied.")
    orientation_applied: bool = Field(description="Whether EXIF turned or mirrored the image.")


class Detection(BaseModel):
    """One object."""

    class_id: int = Field(description="Index into the model's classes.")
    class_name: str
    score: float = Field(description="0 to 1.")
    bbox: Box


class DetectResponse(BaseModel):
    """The objects in one image, best score first."""

    model: ModelReference
    image: ImageFacts
    detections: list[Detection]
    timing_ms: dict[str, float] = Field(
        description="Milliseconds per stage: prepare (decode, resize), queue, infer, postprocess."
    )
    request_id: str


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
    engine: str
    default: bool


class ModelDetails(ModelFacts):
    """A loaded model with its whole manifest."""

    manifest: ModelManifest


class ModelList(BaseModel):
    """Every loaded model."""

    models: list[ModelFacts]


class Health(BaseModel):
    """The state of the service."""

    status: str


class Problem(BaseModel):
    """An error (RFC 9457), with members for programs."""

    type: str
    title: str
    status: int
    detail: str = Field(description="What was received, what is accepted, what to do.")
    instance: str
    code: str = Field(description="Stable name of the error.")
    error: str = Field(description="The detail again, where clients of other servers look.")
    request_id: str
    retryable: bool = Field(description="Whether the same request may succeed later.")


def to_response(manifest: ModelManifest, prediction: Prediction, request_id: str) -> DetectResponse:
    """Name the classes and round the numbers of a prediction."""
    found = prediction.detections
    rows = zip(
        found.class_ids.tolist(), found.scores.tolist(), found.boxes_xyxy.tolist(), strict=True
    )
    return DetectResponse(
        model=ModelReference(name=manifest.name, version=manifest.version),
        image=ImageFacts(
            width=prediction.image_width_px,
            height=prediction.image_height_px,
            orientation_applied=prediction.orientation_applied,
        ),
        detections=[
            Detection(
                class_id=class_id,
                class_name=manifest.classes[class_id],
                score=round(score, 6),
                bbox=[round(coordinate, 3) for coordinate in box],
            )
            for class_id, score, box in rows
        ],
        timing_ms={
            stage: round(1000 * seconds, 3) for stage, seconds in prediction.stage_s.items()
        },
        request_id=request_id,
    )
