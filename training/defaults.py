"""Defaults that depend on the data: task, network, input size and schedule of a configuration."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labels.coco import check_annotations, read_coco
from labels.kitti import DONT_CARE, read_kitti
from labels.voc import read_voc
from model_export.architectures import Architecture, find_architecture
from model_export.errors import ExportError
from model_export.tasks import TASKS, Task
from training.config import (
    RENDERERS,
    ConfigError,
    DataSection,
    TrainConfig,
    read_values,
    validate,
)
from training.data.coco import annotated_categories
from training.data.folder import LabelledFolder, open_folder
from training.data.image_files import Images, image_size
from training.load_images import TrainingData
from training.objectives import OBJECTIVES

ARCHITECTURE_OF_TASK: Mapping[str, str] = {
    "boxes": "hourglass_tiny",
    "poses": "hourglass_tiny",
    "boxes_3d": "hourglass_tiny",
    "extreme_points": "hourglass_tiny",
    "extreme_points_agnostic": "hourglass_tiny",
    "corner_pairs": "cornernet_slim",
    "corner_triplets": "triplet_slim",
}
"""Networks that train on CPUs.

They pass their fine maps on to the output. Without that, a few thousand views are not enough for
classes that differ in details (ADR 32).
"""

SMALL_OBJECT_PX = 24
"""Size in the input, the root of the area, of the object that is larger than a tenth of all."""
MIN_INPUT_PX = 128
MAX_INPUT_PX = 512
"""Bounds of the longer side of the input; images are not enlarged."""

VIEWS_PER_IMAGE = 100
MIN_TRAINED_IMAGES = 4_000
MAX_TRAINED_IMAGES = 8_000
"""Length of the schedule: views of each image, within these bounds. Twice as many for other tasks
than boxes, which have more maps to learn."""
MIN_EPOCHS = 12
MANY_OBJECTS = 8
"""Objects per image from which the larger batch is used: with few, more steps help more."""
MIN_EPOCH_IMAGES = 200
"""Small data sets are repeated within an epoch, which ends with validation and two checkpoints."""

_MAX_IMAGES_FOR_SIZE = 2_000
"""Images whose sizes are read."""


@dataclass(frozen=True)
class PreparedRun:
    """A complete configuration and what was chosen for it.

    Attributes:
        config: with a value for each key.
        choices: one line per choice, for the user.
        projection: camera matrix (3, 4), row by row, that the export of 3D boxes needs; or None.
        data: the images, where the choices needed them; else None.
    """

    config: TrainConfig
    choices: tuple[str, ...] = ()
    projection: tuple[float, ...] | None = None
    data: TrainingData | None = None


@dataclass(frozen=True)
class _Labels:
    """What the labels of a data section offer; no images where all are rendered."""

    classes: tuple[str, ...]
    keypoints: tuple[str, ...] = ()
    has_boxes_3d: bool = False
    can_flip: bool = True
    folder: LabelledFolder | None = None
    keypoint_classes: tuple[str, ...] = ()


def prepare(source: Path) -> PreparedRun:
    """Complete a configuration file, or that of a labelled folder.

    Raises :class:`ConfigError` for an invalid configuration, and
    :class:`~labels.errors.DatasetError` for labels that cannot be read.
    """
    if source.is_dir():
        return complete({"data": {"folder": source}}, str(source))
    return complete(read_values(source), str(source))


def complete(values: Mapping[str, Any], where: str) -> PreparedRun:
    """Complete the values of a configuration; ``where`` is its name in errors.

    Keys of ``values`` are kept. The labels are read only for keys that are missing.
    """
    needed = {"classes", "input_width", "input_height", "architecture"} - set(values)
    schedule = dict(_table(values, "schedule", where))
    if not needed and {"epochs", "batch_size"} <= set(schedule) and "normalization" in values:
        return PreparedRun(validate(TrainConfig, values, where))
    data = validate(DataSection, values.get("data", {}), f"{where}: data")
    labels = _read_labels(data, values.get("classes"))
    choices = _describe_labels(labels)
    task_name = str(values.get("task") or _choose_task(labels, values))
    if task_name not in OBJECTIVES:
        raise ConfigError(f"{where}: task is {task_name!r}; accepted: {', '.join(OBJECTIVES)}.")
    task = TASKS[task_name]
    completed = {
        **values,
        "task": task_name,
        "architecture": values.get("architecture", ARCHITECTURE_OF_TASK[task_name]),
        "normalization": values.get("normalization", task.normalization),
        "classes": values.get("classes", labels.classes),
    }
    if task_name == "poses":
        completed.setdefault("keypoints", labels.keypoints)
        completed.setdefault("keypoint_classes", labels.keypoint_classes)
    network = _find_network(str(completed["architecture"]), where)
    choices.append(f"task {task_name}, network {completed['architecture']}")

    images = Images([]) if labels.folder is None else labels.folder.train
    if not {"input_width", "input_height"} <= set(values):
        width, height, reason = _choose_input_size(images, task, network)
        completed.setdefault("input_width", width)
        completed.setdefault("input_height", height)
        choices.append(f"input {completed['input_width']}x{completed['input_height']}: {reason}")
    completed["augmentation"] = _augmentation(values, task_name, labels, where)
    completed["data"], completed["schedule"] = _schedule(data, schedule, images, task_name)
    config = validate(TrainConfig, completed, where)
    choices.append(_describe_schedule(config, len(images)))
    folder = labels.folder
    if folder is None:
        return PreparedRun(config, tuple(choices))
    projection = folder.projection if task_name == "boxes_3d" else None
    read = TrainingData(folder.train, folder.validation)
    return PreparedRun(config, tuple(choices), projection, read)


def _table(values: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    table = values.get(key, {})
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: {key} is {str(table)[:80]!r}; expected a table [{key}].")
    return table


def _find_network(name: str, where: str) -> Architecture:
    try:
        return find_architecture(name)
    except ExportError as error:
        raise ConfigError(f"{where}: architecture: {error}") from error


def _read_labels(data: DataSection, classes: Sequence[str] | None) -> _Labels:
    if data.folder is not None:
        folder = open_folder(data.folder, classes)
        return _Labels(
            folder.classes,
            folder.keypoints,
            folder.has_boxes_3d,
            folder.can_flip,
            folder,
            folder.keypoint_classes,
        )
    if not data.files:
        renderer = RENDERERS[data.renderer]
        return _Labels(renderer.classes, renderer.keypoints, renderer.is_3d)
    if data.format == "coco":
        datasets = [read_coco(file) for file in data.train]
        for dataset in datasets:
            check_annotations(dataset)
        names = dict.fromkeys(name for one in datasets for name in annotated_categories(one))
        return _Labels(tuple(names))
    if data.labels is None:
        return _Labels(())
    if data.format == "voc":
        objects = [entry for file in data.labels.glob("*.xml") for entry in read_voc(file).objects]
        return _Labels(tuple(sorted({entry.name for entry in objects})))
    types = {name for file in data.labels.glob("*.txt") for name in read_kitti(file).types}
    return _Labels(tuple(sorted(types - {DONT_CARE})))


def _choose_task(labels: _Labels, values: Mapping[str, Any]) -> str:
    found = "poses" if labels.keypoints else "boxes_3d" if labels.has_boxes_3d else "boxes"
    name = values.get("architecture")
    if name is None:
        return found
    tasks = _find_network(str(name), "configuration").tasks
    return found if found in tasks else tasks[0]


def _describe_labels(labels: _Labels) -> list[str]:
    folder = labels.folder
    if folder is None:
        return []
    objects = sum(len(image.boxes_xywh) for _, image in folder.train.files)
    if folder.is_split_off:
        validation = f"{len(folder.validation)} of the images split off for validation"
    elif folder.validation:
        validation = f"{len(folder.validation)} images for validation"
    else:
        validation = "too few images to split off some for validation"
    lines = [
        f"{folder.format} labels: {len(folder.train)} images with {objects} objects to train on, "
        f"{validation}",
        f"classes: {', '.join(folder.classes)}",
    ]
    if folder.keypoints:
        of_classes = f" of {', '.join(folder.keypoint_classes)}" if folder.keypoint_classes else ""
        lines.append(f"keypoints{of_classes}: {', '.join(folder.keypoints)}")
    return lines


def _choose_input_size(images: Images, task: Task, network: Architecture) -> tuple[int, int, str]:
    """Return width and height of the input, and the reason."""
    multiple, reduction = network.input_multiple, task.reduction_px
    if not images:
        return *task.size_px, "default of the task"
    files = images.files
    step = math.ceil(len(files) / _MAX_IMAGES_FOR_SIZE)
    sizes = np.array([image_size(path) for path, _ in files[::step]], np.float64)
    sides = sizes.max(axis=1)
    relative = [
        np.sqrt(image.boxes_xywh[:, 2:].prod(axis=1)) / side
        for (_, image), side in zip(files[::step], sides, strict=True)
    ]
    objects: NDArray[np.float64] = np.concatenate([*relative, np.zeros(0)])
    longer = float(np.median(sides))
    reason = f"images are {_describe_sizes(sizes)}"
    width = longer
    if len(objects):
        small = float(np.quantile(objects, 0.1))
        reason += f", and nine in ten objects are larger than {small * longer:.0f} px"
        width = min(longer, SMALL_OBJECT_PX / max(small, 1e-6))
    width = min(max(width, MIN_INPUT_PX), MAX_INPUT_PX)
    # The scale is that of the longer side to the width, so only landscape images need less height.
    aspect = max(1.0, float(np.quantile(sizes[:, 0] / sizes[:, 1], 0.1)))
    return (
        _round_up(width, multiple) - reduction,
        _round_up(width / aspect, multiple) - reduction,
        reason,
    )


def _describe_sizes(sizes: NDArray[np.float64]) -> str:
    low, high = sizes.min(axis=0).astype(int), sizes.max(axis=0).astype(int)
    smallest, largest = f"{low[0]}x{low[1]}", f"{high[0]}x{high[1]}"
    return largest if smallest == largest else f"{smallest} to {largest}"


def _round_up(side: float, multiple: int) -> int:
    return math.ceil(side / multiple - 1e-6) * multiple


def _augmentation(
    values: Mapping[str, Any], task: str, labels: _Labels, where: str
) -> dict[str, Any]:
    """Return the augmentation; what is left out has the default of the section."""
    chosen: dict[str, Any] = {}
    if task == "boxes_3d":  # as in the paper: depth is only known in views of the original scale
        chosen = {"scale": (0.71, 1.67), "fixed_probability": 0.5}
    if task == "poses" and not labels.can_flip:
        chosen["flip"] = False
    return {**chosen, **_table(values, "augmentation", where)}


def _schedule(
    data: DataSection, schedule: Mapping[str, Any], images: Images, task: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the sections of data and schedule with the defaults for these images."""
    count = len(images)
    sections = data.model_dump(exclude_unset=True)
    if count and "repeats" not in sections:
        sections["repeats"] = math.ceil(MIN_EPOCH_IMAGES / count)
    per_epoch = count * int(sections.get("repeats", 1)) + data.rendered_per_epoch
    total = min(max(VIEWS_PER_IMAGE * count, MIN_TRAINED_IMAGES), MAX_TRAINED_IMAGES)
    total *= 1 if task == "boxes" else 2
    objects = sum(len(image.boxes_xywh) for _, image in images.files)
    has_many_objects = objects >= MANY_OBJECTS * max(count, 1)
    defaults = {
        "batch_size": 8 if has_many_objects else 4,
        "learning_rate": 1.5e-3 if has_many_objects else 1.2e-3,
        "epochs": max(MIN_EPOCHS, math.ceil(total / max(per_epoch, 1))),
    }
    return sections, {**defaults, **schedule}


def _describe_schedule(config: TrainConfig, images: int) -> str:
    repeated = config.data.repeats * images
    parts = [f"{repeated} images"] if repeated else []
    if config.data.rendered_per_epoch:
        parts.append(f"{config.data.rendered_per_epoch} rendered images")
    per_epoch = " and ".join(parts) or "all images"
    ranges = config.augmentation
    views = [f"scales {ranges.scale[0]} to {ranges.scale[1]}", "colours"]
    if ranges.flip:
        views.append("flips")
    return (
        f"schedule: {config.schedule.epochs} epochs of {per_epoch} in batches of "
        f"{config.schedule.batch_size}, with random {', '.join(views)}"
    )
