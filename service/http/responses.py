"""Conversion of predictions and models to responses."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from labels.extreme_points import octagons
from model_package import KeypointsDecoder, ModelManifest
from service.async_detector import AsyncDetector
from service.decoders.types import (
    Detections,
    Detections3D,
    ExtremePointDetections,
    PoseAndBox3DDetections,
    PoseDetections,
)
from service.detector import Prediction
from service.http.schemas import (
    BatchResponse,
    Box3D,
    Detection,
    DetectResponse,
    FailedModel,
    ImageInfo,
    ModelDetails,
    ModelOptions,
    ModelReference,
    ModelSummary,
    MultiModelResponse,
    PoseModelDetails,
    Problem,
)
from service.model_registry import ModelRegistry

_JSON: Mapping[type[Any], TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (DetectResponse, BatchResponse, MultiModelResponse, Problem)
}


def to_json(body: DetectResponse | BatchResponse | MultiModelResponse | Problem) -> bytes:
    """Serialize a response body."""
    return _JSON[type(body)].dump_json(body, exclude_none=True)


def to_response(manifest: ModelManifest, prediction: Prediction, request_id: str) -> DetectResponse:
    """Return the response for a prediction, with class names and rounded numbers."""
    return DetectResponse(
        model=ModelReference(name=manifest.name, version=manifest.version),
        image=ImageInfo(
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


def _detections(manifest: ModelManifest, detections: Detections) -> list[Detection]:
    rows = zip(
        detections.class_ids.tolist(),
        detections.scores.astype(float).round(6).tolist(),
        detections.boxes_xyxy.round(3).tolist(),
        RESPONSE_FIELDS[type(detections)](detections),
        strict=True,
    )
    return [
        Detection(class_id, manifest.classes[class_id], score, box, **task_fields)
        for class_id, score, box, task_fields in rows
    ]


def model_summary(detector: AsyncDetector, models: ModelRegistry) -> ModelSummary:
    """Return the entry of a model in the list of models."""
    manifest, rules = detector.manifest, detector.rules
    return ModelSummary(
        name=manifest.name,
        version=manifest.version,
        versions=[one.manifest.version for one in models.versions(manifest.name)],
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
        engine=detector.engine_description,
        default=detector is models.detectors.get(models.default_name),
    )


def model_details(detector: AsyncDetector, models: ModelRegistry) -> ModelDetails:
    """Return the description of a model with its manifest."""
    summary = model_summary(detector, models)
    decoder = detector.manifest.decoder
    fields = {**dict(summary), "manifest": detector.manifest}
    if isinstance(decoder, KeypointsDecoder):
        return PoseModelDetails(**fields, keypoints=decoder.keypoints, skeleton=decoder.skeleton)
    return ModelDetails(**fields)


def failed_models(models: ModelRegistry) -> list[FailedModel]:
    """Return an entry for each package that could not be loaded."""
    return [
        FailedModel(
            name=package.name,
            version=package.version,
            reason=package.reason,
            default=package.name == models.default_name,
        )
        for package in models.failed
    ]


def _no_fields(detections: Detections) -> Iterator[dict[str, Any]]:
    return ({} for _ in range(len(detections)))


def _keypoints(poses: PoseDetections) -> Iterator[dict[str, Any]]:
    scored = np.dstack([poses.keypoints.round(3), poses.keypoint_scores.astype(float).round(6)])
    has_keypoints = np.isfinite(poses.keypoints[:, 0, 0]).tolist()
    rows = zip(scored.tolist(), has_keypoints, strict=True)
    return ({"keypoints": keypoints} if present else {} for keypoints, present in rows)


def _extreme_points(detections: ExtremePointDetections) -> Iterator[dict[str, Any]]:
    rows = zip(
        detections.points.round(3).tolist(),
        octagons(detections.points).round(3).tolist(),
        strict=True,
    )
    return ({"extreme_points": points, "octagon": octagon} for points, octagon in rows)


def _boxes_3d(detections: Detections3D) -> Iterator[dict[str, Any]]:
    rows = zip(
        _rounded(detections.dimensions_hwl_m),
        _rounded(detections.locations_m),
        _rounded(detections.rotations_y_rad),
        _rounded(detections.alphas_rad),
        _rounded(detections.depths_m),
        detections.corners.round(3),
        strict=True,
    )
    for dimensions, location, rotation_y, alpha, depth, corners in rows:
        yield {
            "box3d": Box3D(
                dimensions_hwl=dimensions,
                location_xyz=location,
                rotation_y=rotation_y,
                alpha=alpha,
                depth=depth,
                corners_px=corners.tolist() if np.isfinite(corners).all() else None,
            )
        }


def _keypoints_and_boxes_3d(detections: PoseAndBox3DDetections) -> Iterator[dict[str, Any]]:
    rows = zip(_keypoints(detections), _boxes_3d(detections), strict=True)
    return ({**keypoints, **box_3d} for keypoints, box_3d in rows)


def _rounded(values: NDArray[np.float64]) -> list[Any]:
    """Round metres and radians to four decimals, which is below any sensor's accuracy."""
    rounded: list[Any] = values.round(4).tolist()
    return rounded


RESPONSE_FIELDS: Mapping[type[Detections], Callable[[Any], Iterator[dict[str, Any]]]] = {
    Detections: _no_fields,
    PoseDetections: _keypoints,
    Detections3D: _boxes_3d,
    PoseAndBox3DDetections: _keypoints_and_boxes_3d,
    ExtremePointDetections: _extreme_points,
}
"""Functions that return the task's fields of each detection, by type of detections."""
