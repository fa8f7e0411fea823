"""Training configuration, read from a TOML file: all settings that determine the weights."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, assert_never

from numpy.random import Generator
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, model_validator
from pydantic_core import ErrorDetails

from model_export.architectures import Architecture, find_architecture
from model_export.class_names import COCO_KEYPOINTS, flipped_pairs
from model_export.errors import ExportError
from model_export.graph.extreme_points import SIDES
from model_export.graph.normalization import NORMALIZATIONS
from model_export.tasks import TASKS, Task
from model_package import ExtremePointsDecoder, ResizeMode
from training.data.augmentation import AugmentationRanges, Canvas
from training.data.sample import AnnotatedImage
from training.objectives import OBJECTIVES
from training.synthetic import blood_smears, road_scenes
from training.synthetic.people import render_people


@dataclass(frozen=True)
class Renderer:
    """A function that renders images, and the labels that they have."""

    render: Callable[[Generator], AnnotatedImage]
    classes: tuple[str, ...]
    keypoints: tuple[str, ...] = ()
    is_3d: bool = False


RENDERERS: Mapping[str, Renderer] = {
    "blood_smears": Renderer(blood_smears.render_smear, blood_smears.CLASS_NAMES),
    "people": Renderer(render_people, ("person",), keypoints=COCO_KEYPOINTS),
    "road_scenes": Renderer(road_scenes.render_road, road_scenes.CLASS_NAMES, is_3d=True),
}
"""Renderers by name."""


class ConfigError(ValueError):
    """Invalid configuration; the message names the file and every invalid field."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSection(_Section):
    """Training and validation images.

    ``folder`` has images and labels in any of the formats of :mod:`training.data.folder`.
    Otherwise ``train`` and ``validation`` are COCO files or, for the other formats, lists of image
    names whose label files are in ``labels``. Paths are relative to the working directory. Without
    ``validation`` the best checkpoint is that of the last epoch. ``rendered_per_epoch`` images
    are added to those of ``train``, different ones in every epoch.
    """

    folder: Path | None = None
    format: Literal["coco", "kitti", "voc"] = "coco"
    images: Path | None = None
    labels: Path | None = None
    train: tuple[Path, ...] = ()
    validation: Path | None = None
    repeats: int = Field(1, ge=0)
    rendered_per_epoch: int = Field(0, ge=0)
    renderer: Literal["blood_smears", "people", "road_scenes"] = "blood_smears"

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that list images on disk."""
        return self.train if self.validation is None else (*self.train, self.validation)


class AugmentationSection(_Section):
    """Augmentation; see :class:`~training.data.augmentation.AugmentationRanges`."""

    scale: tuple[float, float] = (0.75, 1.4)
    brightness: float = Field(default=0.12, ge=0, lt=1)
    contrast: float = Field(default=0.2, ge=0, lt=1)
    saturation: float = Field(default=0.3, ge=0, le=1)
    hue_degrees: float = Field(default=8.0, ge=0, le=180)
    blur_probability: float = Field(default=0.1, ge=0, le=1)
    flip: bool = True
    quarter_turns: bool = False
    center_border_px: int | None = Field(default=None, ge=1)
    fixed_probability: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is {list(self.scale)}, but must be [smallest, largest] factor")
        return self

    def ranges(self) -> AugmentationRanges:
        """Return the settings in the type of the augmentation functions."""
        return AugmentationRanges(**self.model_dump())


class ScheduleSection(_Section):
    """AdamW with linear warm-up and cosine decay to 0, and the moving average of the weights."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(default=1.5e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    warmup_steps: int = Field(default=100, ge=0)
    average_decay: float = Field(default=0.998, ge=0, lt=1)
    gradient_clip: float = Field(default=10.0, gt=0)
    evaluate_every: int = Field(default=1, ge=1)


class TrainConfig(_Section):
    """Configuration of a training run.

    ``train_crop`` is the side of the square training crops; without it they have the size of the
    input. If all images have the same width, ``image_width`` fixes the scale of objects at test
    time; without it every image is scaled by its own size. ``loss_weights`` overrides weights of
    the reference implementation. ``precision`` is that of the network on CPUs: ``auto`` chooses
    bfloat16 where it is faster. ``start`` is a checkpoint of this project or of the reference
    implementation from which the weights are loaded.
    """

    architecture: str
    task: str = "boxes"
    normalization: str
    classes: tuple[str, ...] = Field(min_length=1)
    keypoints: tuple[str, ...] = ()
    keypoint_classes: tuple[str, ...] = ()
    input_width: int = Field(gt=0)
    input_height: int = Field(gt=0)
    resize: ResizeMode | None = None
    train_crop: int | None = Field(default=None, gt=0)
    image_width: int | None = Field(default=None, gt=0)
    seed: int = Field(default=0, ge=0)
    start: Path | None = None
    loader_workers: int = Field(default=1, ge=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    data: DataSection
    augmentation: AugmentationSection = AugmentationSection()
    schedule: ScheduleSection
    loss_weights: Mapping[str, PositiveFloat] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        try:
            tasks = OBJECTIVES.keys() & set(self.network.tasks)
        except ExportError as error:
            raise ValueError(f"architecture: {error}") from error
        if self.task not in tasks:
            raise ValueError(f"task of {self.architecture} must be one of {sorted(tasks)}")
        if self.normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization must be one of {sorted(NORMALIZATIONS)}")
        for name in ("classes", "keypoints"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} contains duplicates")
        return self

    @model_validator(mode="after")
    def _terms_exist(self) -> Self:
        terms = OBJECTIVES[self.task].names
        if unknown := sorted(set(self.loss_weights) - set(terms)):
            raise ValueError(
                f"loss_weights: {unknown} are not loss terms of {self.task}; use {list(terms)}"
            )
        return self

    @model_validator(mode="after")
    def _sizes_suit_the_network(self) -> Self:
        multiple, reduction_px = self.network.input_multiple, self.task_spec.reduction_px
        for name in ("input_width", "input_height", "train_crop"):
            side = getattr(self, name)
            if side is not None and (side + reduction_px) % multiple:
                expected = "one less than a multiple" if reduction_px else "a multiple"
                raise ValueError(f"{name} is {side}, but must be {expected} of {multiple}")
        return self

    @model_validator(mode="after")
    def _data_suit_the_task(self) -> Self:
        data = self.data
        if not (data.repeats and (data.train or data.folder)) and data.rendered_per_epoch == 0:
            raise ValueError(
                "data: nothing to train on; set folder, train and repeats, or rendered_per_epoch"
            )
        if data.folder is not None and (data.files or data.images or data.labels):
            raise ValueError("data: folder replaces images, labels, train and validation")
        if data.folder is not None and self.has_extreme_points:
            raise ValueError("data: a folder has no extreme points; set train to COCO files")
        if data.files and data.images is None:
            raise ValueError("data: set images to the folder of the images in train and validation")
        if data.files and (data.labels is None) != (data.format == "coco"):
            raise ValueError("data: labels is the folder of the label files of kitti and voc only")
        if bool(self.keypoints) != (self.task == "poses"):
            raise ValueError("keypoints are required for task poses and not allowed for others")
        if not set(self.keypoint_classes) <= set(self.classes) or (
            self.keypoint_classes and not self.keypoints
        ):
            raise ValueError(
                f"keypoint_classes are {list(self.keypoint_classes)}; accepted are, for task "
                f"poses, some of the classes {list(self.classes)}; without any, all have keypoints"
            )
        formats = {"poses": ("coco",), "boxes_3d": ("kitti",)}.get(self.task)
        if self.has_extreme_points:
            formats = ("coco",)
        if formats and data.files and data.format not in formats:
            raise ValueError(f"data: format {data.format} has no labels for {self.task}")
        if self.task == "boxes_3d" and self.augmentation.quarter_turns:
            raise ValueError("augmentation: quarter_turns would change the angles of 3D boxes")
        if self.has_extreme_points and self.augmentation.quarter_turns:
            raise ValueError("augmentation: quarter_turns would turn top points into left ones")
        if data.rendered_per_epoch:
            self._check_renderer()
        return self

    def _check_renderer(self) -> None:
        renderer = RENDERERS[self.data.renderer]
        name = f"data: renderer {self.data.renderer}"
        if self.classes != renderer.classes or self.keypoints not in ((), renderer.keypoints):
            raise ValueError(
                f"{name} draws classes {list(renderer.classes)} with keypoints "
                f"{list(renderer.keypoints)}; classes and keypoints must be the same"
            )
        if self.keypoints and not renderer.keypoints:
            raise ValueError(f"{name} draws no keypoints")
        if self.task == "boxes_3d" and not renderer.is_3d:
            raise ValueError(f"{name} draws no 3D boxes")
        if self.has_extreme_points:
            raise ValueError(f"{name} draws no extreme points; set train instead")

    @property
    def network(self) -> Architecture:
        """The architecture named by ``architecture``."""
        return find_architecture(self.architecture)

    @property
    def task_spec(self) -> Task:
        """The task named by ``task``."""
        return TASKS[self.task]

    @property
    def has_extreme_points(self) -> bool:
        """Whether the labels of the task are extreme points."""
        return self.task_spec.decoder is ExtremePointsDecoder

    def head_channels(self) -> dict[str, int]:
        """Return the channels of all heads of the task, optional ones included."""
        heads = self.task_spec.heads
        return self.task_spec.head_channels(
            dict.fromkeys(heads, 0), len(self.classes), max(1, len(self.keypoints))
        )

    def test_canvas(self, width: int, height: int) -> Canvas:
        """Return the canvas of an image of this size at test time."""
        return self._canvas(self.input_width, self.input_height, width, height)

    def train_canvas(self, width: int, height: int) -> Canvas:
        """Return the canvas of augmented views of an image of this size."""
        side = self.train_crop
        return self._canvas(side or self.input_width, side or self.input_height, width, height)

    def _canvas(self, canvas_width: int, canvas_height: int, width: int, height: int) -> Canvas:
        resize = self.resize or self.task_spec.resize
        match resize:
            case "letterbox":
                scale = self.input_width / (self.image_width or max(width, height))
            case "fit_width":
                scale = self.input_width / (self.image_width or width)
            case "keep_resolution":
                scale = 1.0
            case _:
                assert_never(resize)
        pairs = flipped_pairs(self.keypoints)
        if self.has_extreme_points:
            pairs = [(SIDES.index("left"), SIDES.index("right"))]
        return Canvas(canvas_width, canvas_height, scale, pairs)


def read_values(path: Path) -> dict[str, Any]:
    """Read the values of a configuration file. Raises :class:`ConfigError`.

    ``base`` in the file names another one in the same directory, whose values it overrides.
    """
    try:
        values = _read_toml(path)
        if "base" in values:
            values = _merged(_read_toml(path.parent / str(values.pop("base"))), values)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return values


_AnySection = TypeVar("_AnySection", bound=BaseModel)


def validate(section: type[_AnySection], values: object, where: str) -> _AnySection:
    """Return ``values`` as a section. Raises :class:`ConfigError` with a sentence per problem."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        problems = [_explain(item, section) for item in error.errors(include_url=False)]
        raise ConfigError(f"{where}: {' '.join(problems)}") from error


def _explain(problem: ErrorDetails, section: type[BaseModel]) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    match problem["type"]:
        case "missing":
            return f"{key} is missing."
        case "extra_forbidden":
            return f"{key} is not a key; accepted: {', '.join(_keys(section, location[:-1]))}."
        case "value_error":
            text = problem["msg"].removeprefix("Value error, ").removesuffix(".")
            return f"{key + ': ' if key else ''}{text}."
    return f"{key}: {problem['msg']}, not {str(problem['input'])[:80]!r}."


def _keys(section: type[BaseModel], parents: Sequence[str]) -> list[str]:
    """Return the keys of the section at this place of the configuration."""
    for name in parents:
        nested = section.model_fields[name].annotation
        assert isinstance(nested, type)
        section = nested
    return list(section.model_fields)


def _read_toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _merged(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Merge tables key by key and replace other values."""
    sections = {
        key: {**base[key], **section}
        for key, section in values.items()
        if isinstance(section, dict) and isinstance(base.get(key), dict)
    }
    return {**base, **values, **sections}
