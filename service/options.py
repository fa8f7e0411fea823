"""What requests may ask of one model, and their options completed from its manifest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_package import ModelManifest
from service.decoders.types import DetectionOptions
from service.errors import InvalidOptionError
from service.http.query_parameters import MAX_CAMERA_PX, MAX_SCALES, MIN_FOCAL_PX, DetectParameters
from service.imaging.types import InputOptions

# Error texts repeat at most this much of a request, and of a model's classes.
_LETTERS_SHOWN = 100
_CLASSES_SHOWN = 20


@dataclass(frozen=True)
class RequestOptions:
    """One request's options, complete and possible."""

    detection: DetectionOptions
    inputs: InputOptions


@dataclass(frozen=True)
class _TaskRules:
    """What the reference implementation of a task does at test time."""

    max_scales: int = MAX_SCALES
    needs_scale_1: bool = False
    adds_flipped_input: bool = False
    soft_nms: tuple[bool, ...] = (False, True)
    has_camera: bool = False


TASK_RULES: Mapping[str, _TaskRules] = {
    "center_boxes": _TaskRules(),
    "center_poses": _TaskRules(),
    "center_boxes_3d": _TaskRules(max_scales=1, has_camera=True),
    "corner_pairs": _TaskRules(adds_flipped_input=True, soft_nms=(True,)),
    # Centers are taken from scale 1 alone.
    "corner_triplets": _TaskRules(adds_flipped_input=True, soft_nms=(True,), needs_scale_1=True),
}


class OptionRules:
    """The options that one model has; the values of each, the model's own choice first."""

    def __init__(self, manifest: ModelManifest) -> None:
        self._manifest = manifest
        self._task = TASK_RULES[manifest.decoder.kind]
        self.max_scales = self._task.max_scales
        self.has_camera = self._task.has_camera
        self.soft_nms = self._task.soft_nms
        self.flip = _flips(manifest, self._task)
        self.keep_resolution = _resolutions(manifest)

    def complete(self, given: DetectParameters) -> RequestOptions:
        """Complete a request's options; names become class ids.

        Raises :class:`InvalidOptionError`, which says what the model can do.
        """
        scales = self._scales(given.scales)
        flip = self._choose("flip", given.flip, self.flip)
        keep_resolution = self._choose(
            "keep_resolution", given.keep_resolution, self.keep_resolution
        )
        soft_nms = given.soft_nms
        if soft_nms is None:
            soft_nms = len(scales) > 1 or self.soft_nms[0]
        threshold = given.score_threshold
        decoder = self._manifest.decoder
        return RequestOptions(
            DetectionOptions(
                decoder.score_threshold if threshold is None else threshold,
                self._top_k(given.top_k),
                self._class_ids(given.classes),
                self._choose("soft_nms", soft_nms, self.soft_nms),
                self._projection(given),
            ),
            InputOptions(
                flip=flip and not self._task.adds_flipped_input,
                add_flipped_input=self._task.adds_flipped_input,
                scales=scales,
                keep_resolution=keep_resolution,
            ),
        )

    def _choose(self, name: str, given: bool | None, possible: tuple[bool, ...]) -> bool:
        if given is None:
            return possible[0]
        if given not in possible:
            words = " or ".join(str(value).lower() for value in possible)
            raise InvalidOptionError(
                f"{name}: received {str(given).lower()}; model {self._manifest.name} can do only "
                f"{words}. Leave the option out, or use a package that was exported for it."
            )
        return given

    def _top_k(self, given: int | None) -> int:
        most = self._manifest.decoder.top_k
        if given is not None and given > most:
            raise InvalidOptionError(
                f"top_k: received {given}; model {self._manifest.name} finds at most "
                f"{most} objects per image."
            )
        return most if given is None else given

    def _class_ids(self, given: list[str] | None) -> frozenset[int] | None:
        if given is None:
            return None
        known = {name: index for index, name in enumerate(self._manifest.classes)}
        unknown = [name for name in given if name not in known]
        if unknown:
            raise InvalidOptionError(
                f"classes: received {unknown[0][:_LETTERS_SHOWN]!r}; model {self._manifest.name} "
                f"knows {_listed(self._manifest.classes)}. Repeat the option for several classes."
            )
        return frozenset(known[name] for name in given)

    def _scales(self, given: list[float] | None) -> tuple[float, ...]:
        if given is None:
            return (1.0,)
        received = ", ".join(f"{scale:g}" for scale in given)
        if len(set(given)) != len(given):
            raise InvalidOptionError(f"scales: received {received}; give each scale once.")
        if self.max_scales == 1 and given != [1.0]:
            raise InvalidOptionError(
                f"scales: received {received}; model {self._manifest.name} evaluates images at "
                "the scale 1 only. Leave the option out."
            )
        if self._task.needs_scale_1 and 1.0 not in given:
            raise InvalidOptionError(
                f"scales: received {received}; model {self._manifest.name} finds its centers at "
                "the scale 1. Add it."
            )
        return tuple(given)

    def _projection(self, given: DetectParameters) -> NDArray[np.float64] | None:
        intrinsics = (given.fx, given.fy, given.cx, given.cy)
        numbers = [value for value in intrinsics if value is not None]
        if not numbers and given.projection is None:
            return None
        if not self.has_camera:
            raise InvalidOptionError(
                f"fx, fy, cx, cy, projection: model {self._manifest.name} finds nothing in "
                "space, so it has no use for a camera. Leave them out."
            )
        if given.projection is None and len(numbers) == 4:
            fx, fy, cx, cy = numbers
            return np.array([[fx, 0, cx, 0], [0, fy, cy, 0], [0, 0, 1, 0]])
        if given.projection is None or numbers:
            raise InvalidOptionError(
                f"projection, fx, fy, cx, cy: received {len(given.projection or [])} numbers of "
                f"a matrix and {len(numbers)} of the others. Give either the 12 numbers of "
                "projection or all four of fx, fy, cx and cy."
            )
        return _rectified(np.array(given.projection).reshape(3, 4))


def _rectified(projection: NDArray[np.float64]) -> NDArray[np.float64]:
    """The camera matrix (3, 4), if it is one that 3D boxes can be worked out with."""
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
            "understood: fx, 0, cx, x, 0, fy, cy, y, 0, 0, 1, z."
        )
    return projection


def _listed(names: Sequence[str]) -> str:
    """Some names, and how many there are when that is not all."""
    some = ", ".join(name[:_LETTERS_SHOWN] for name in names[:_CLASSES_SHOWN])
    return some if len(names) <= _CLASSES_SHOWN else f"{some}, ... ({len(names)} in all)"


def _flips(manifest: ModelManifest, task: _TaskRules) -> tuple[bool, ...]:
    if task.adds_flipped_input:
        return (True,)
    return tuple(sorted({artifact.flip for artifact in manifest.artifacts}))


def _resolutions(manifest: ModelManifest) -> tuple[bool, ...]:
    """False for the manifest's resize, True for an image that is only padded."""
    if manifest.input.resize == "keep_resolution":
        return (True,)
    if manifest.input.free_size is not None or manifest.input.resize == "fit_width":
        return (False, True)
    return (False,)
