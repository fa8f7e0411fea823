"""Options that a model supports, and completion of request options from its manifest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from model_package import ModelManifest
from service.decoders.types import DetectionOptions
from service.errors import InvalidOptionError
from service.imaging.types import InputOptions
from service.options import (
    MAX_CAMERA_PX,
    MAX_SCALES,
    MIN_FOCAL_PX,
    DetectParameters,
    RequestOptions,
)

# Maximum number of characters of a value, and of class names, that an error text quotes.
_MAX_CHARACTERS = 100
_MAX_CLASSES = 20


@dataclass(frozen=True)
class _TaskRules:
    """Test-time behaviour of a task in the reference implementation."""

    max_scales: int = MAX_SCALES
    needs_scale_1: bool = False
    soft_nms: tuple[bool, ...] = (False, True)
    has_camera: bool = False


TASK_RULES: Mapping[str, _TaskRules] = {
    "center_boxes": _TaskRules(),
    "center_poses": _TaskRules(),
    "center_boxes_3d": _TaskRules(max_scales=1, has_camera=True),
    "center_poses_and_boxes_3d": _TaskRules(max_scales=1, has_camera=True),
    "corner_pairs": _TaskRules(soft_nms=(True,)),
    # Centers are taken from scale 1 alone.
    "corner_triplets": _TaskRules(soft_nms=(True,), needs_scale_1=True),
    "extreme_points": _TaskRules(soft_nms=(True,)),
}


class OptionRules:
    """Options of one model; each attribute lists the supported values, the default first."""

    def __init__(self, manifest: ModelManifest) -> None:
        self._manifest = manifest
        self._task = TASK_RULES[manifest.decoder.kind]
        self.max_scales = self._task.max_scales
        self.has_camera = self._task.has_camera
        self.soft_nms = self._task.soft_nms
        self.flip = _flips(manifest)
        self.keep_resolution = _resolutions(manifest)

    def complete(self, parameters: DetectParameters) -> RequestOptions:
        """Fill in defaults and map class names to ids.

        Raises :class:`InvalidOptionError` for options that the model does not support.
        """
        scales = self._scales(parameters.scales)
        flip = self._choose("flip", parameters.flip, self.flip)
        keep_resolution = self._choose(
            "keep_resolution", parameters.keep_resolution, self.keep_resolution
        )
        soft_nms = parameters.soft_nms
        if soft_nms is None:
            soft_nms = len(scales) > 1 or self.soft_nms[0]
        threshold = parameters.score_threshold
        decoder = self._manifest.decoder
        return RequestOptions(
            DetectionOptions(
                decoder.score_threshold if threshold is None else threshold,
                self._top_k(parameters.top_k),
                self._class_ids(parameters.classes),
                self._choose("soft_nms", soft_nms, self.soft_nms),
                self._projection(parameters),
            ),
            InputOptions(
                flip=flip and not decoder.flipped_input,
                add_flipped_input=flip and bool(decoder.flipped_input),
                scales=scales,
                keep_resolution=keep_resolution,
            ),
        )

    def _choose(self, name: str, value: bool | None, supported: tuple[bool, ...]) -> bool:
        if value is None:
            return supported[0]
        if value not in supported:
            accepted = " or ".join(str(item).lower() for item in supported)
            raise InvalidOptionError(
                f"{name}: received {str(value).lower()}; model {self._manifest.name} supports only "
                f"{accepted}. Leave the option out, or use a package that was exported for it."
            )
        return value

    def _top_k(self, top_k: int | None) -> int:
        maximum = self._manifest.decoder.top_k
        if top_k is not None and top_k > maximum:
            raise InvalidOptionError(
                f"top_k: received {top_k}; model {self._manifest.name} returns at most "
                f"{maximum} detections per image."
            )
        return maximum if top_k is None else top_k

    def _class_ids(self, classes: list[str] | None) -> frozenset[int] | None:
        if classes is None:
            return None
        known = {name: index for index, name in enumerate(self._manifest.classes)}
        unknown = [name for name in classes if name not in known]
        if unknown:
            raise InvalidOptionError(
                f"classes: received {unknown[0][:_MAX_CHARACTERS]!r}; model {self._manifest.name} "
                f"has {_list_names(self._manifest.classes)}. Repeat the option for several classes."
            )
        return frozenset(known[name] for name in classes)

    def _scales(self, scales: list[float] | None) -> tuple[float, ...]:
        if scales is None:
            return (1.0,)
        received = ", ".join(f"{scale:g}" for scale in scales)
        if len(set(scales)) != len(scales):
            raise InvalidOptionError(f"scales: received {received}; give each scale once.")
        if self.max_scales == 1 and scales != [1.0]:
            raise InvalidOptionError(
                f"scales: received {received}; model {self._manifest.name} supports only "
                "the scale 1. Leave the option out."
            )
        if self._task.needs_scale_1 and 1.0 not in scales:
            raise InvalidOptionError(
                f"scales: received {received}; model {self._manifest.name} takes its centers from "
                "the scale 1. Add it."
            )
        return tuple(scales)

    def _projection(self, parameters: DetectParameters) -> NDArray[np.float64] | None:
        intrinsics = (parameters.fx, parameters.fy, parameters.cx, parameters.cy)
        numbers = [value for value in intrinsics if value is not None]
        projection = parameters.projection
        if not numbers and projection is None:
            return None
        if not self.has_camera:
            raise InvalidOptionError(
                f"fx, fy, cx, cy, projection: model {self._manifest.name} returns no 3D "
                "boxes, so it has no camera options. Leave them out."
            )
        if projection is None and len(numbers) == 4:
            fx, fy, cx, cy = numbers
            return np.array([[fx, 0, cx, 0], [0, fy, cy, 0], [0, 0, 1, 0]])
        if projection is None or numbers:
            raise InvalidOptionError(
                f"projection, fx, fy, cx, cy: received {len(projection or [])} numbers of "
                f"a matrix and {len(numbers)} of the others. Give either the 12 numbers of "
                "projection or all four of fx, fy, cx and cy."
            )
        matrix = np.array(projection).reshape(3, 4)
        _check_rectified(matrix)
        return matrix


def _check_rectified(projection: NDArray[np.float64]) -> None:
    """Raise :class:`InvalidOptionError` unless (3, 4) is the matrix of a rectified camera."""
    focal = projection[(0, 1), (0, 1)]
    if focal.min() < MIN_FOCAL_PX:
        raise InvalidOptionError(
            f"projection: received the focal lengths {focal[0]:g} and {focal[1]:g} (first and "
            f"sixth number). Both must be from {MIN_FOCAL_PX:g} to {MAX_CAMERA_PX:g}."
        )
    if projection[0, 1] or projection[1, 0] or projection[2, :3].tolist() != [0, 0, 1]:
        received = ", ".join(f"{number:g}" for number in projection.flat)
        raise InvalidOptionError(
            f"projection: received {received}. Only the matrix of a rectified camera is "
            "accepted: fx, 0, cx, x, 0, fy, cy, y, 0, 0, 1, z."
        )


def _list_names(names: Sequence[str]) -> str:
    """Return the first names, followed by the total number if there are more."""
    shown = ", ".join(name[:_MAX_CHARACTERS] for name in names[:_MAX_CLASSES])
    return shown if len(names) <= _MAX_CLASSES else f"{shown}, ... ({len(names)} in all)"


def _flips(manifest: ModelManifest) -> tuple[bool, ...]:
    if manifest.decoder.flipped_input:
        return manifest.decoder.flipped_input
    return tuple(sorted({artifact.flip for artifact in manifest.artifacts}))


def _resolutions(manifest: ModelManifest) -> tuple[bool, ...]:
    """Return the supported values of ``keep_resolution``, the default first."""
    match manifest.input.resize:
        case "keep_resolution":
            return (True,)
        case "fit_width":
            return (False, True)
        case "letterbox":
            return (False,) if manifest.input.free_size is None else (False, True)
        case _:
            assert_never(manifest.input.resize)
