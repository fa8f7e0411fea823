"""Export configuration, its validation and its resolution to a complete description."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

from pydantic import ValidationError

from model_export.architectures import OUTPUT_STRIDE
from model_export.class_names import COCO_KEYPOINTS, COCO_SKELETON
from model_export.errors import CheckpointMismatchError, ConfigError
from model_export.graph.boxes_3d import KITTI_PROJECTION
from model_export.graph.extreme_points import decode_extreme_points
from model_export.graph.normalization import NORMALIZATIONS, Normalization
from model_export.key_mappings.key_mapping import Framework
from model_export.tasks import Task, task_of_framework
from model_package import (
    Artifact,
    Decoder,
    ExtremePointsDecoder,
    FreeSize,
    InputSpec,
    ModelManifest,
    OnnxArtifact,
    Provenance,
    References,
    ResizeMode,
    Verification,
)

ExportPrecision = Literal["fp32", "fp16"]
"""Precisions of an export; int8 files are added to its result."""


@dataclass(frozen=True)
class ExportConfig:
    """Options of an export; None means the default of the checkpoint's task."""

    name: str
    version: str
    architecture: str | None = None
    """A name that :func:`model_export.architectures.find_architecture` accepts."""
    task: str | None = None
    """A key of :data:`model_export.tasks.TASKS`."""
    weights: str | None = None
    """Key of the checkpoint that holds the weights."""
    ignored_heads: tuple[str, ...] = ()
    """Heads of the checkpoint, by their names in it, that are left out."""
    classes: tuple[str, ...] | None = None
    """Class names in the order of training."""
    keypoints: tuple[str, ...] | None = None
    """Keypoint names in the order of training; poses only."""
    keypoint_classes: tuple[str, ...] | None = None
    """Classes whose objects have keypoints; None: all."""
    projection: tuple[float, ...] = KITTI_PROJECTION
    """Default camera matrix (3, 4), row-major, for requests without one; 3D boxes only."""
    width_px: int | None = None
    height_px: int | None = None
    resize: ResizeMode | None = None
    max_side_px: int | None = None
    """Longest input side with dynamic height and width; None: the task's default."""
    flip: bool = False
    """Add a second graph that averages the maps of the image and its horizontal flip."""
    precision: ExportPrecision = "fp32"
    """``fp16``: add an fp16 file for each fp32 file."""
    normalization: str | Normalization | None = None
    """A key of :data:`model_export.graph.normalization.NORMALIZATIONS`, or other values."""
    edge_aggregation: float = 0.0
    """Weight of edge aggregation, 0 for none; extreme points only."""
    top_k: int = 100
    score_threshold: float = 0.3
    source: str = "unknown"
    """Source of the checkpoint."""
    license: str = "unknown"
    description: str = ""


@dataclass(frozen=True)
class NetworkInfo:
    """What an export needs to know of its network."""

    architecture: str
    """Name in the manifest."""
    task: str
    """A key of :data:`model_export.tasks.TASKS`."""
    num_classes: int
    num_keypoints: int = 0
    """Keypoints per pose; 0 for other tasks."""
    input_multiple: Literal[32, 128] = 32
    """Sides of the input are multiples of it."""
    output_stride: int = OUTPUT_STRIDE
    """Input pixels per cell of the output maps."""
    framework: Framework = "authors"
    """Framework of the training, whose own test determines the defaults."""


@dataclass(frozen=True)
class ResolvedExport:
    """An export configuration with every default resolved."""

    config: ExportConfig
    network: NetworkInfo
    task: Task
    classes: tuple[str, ...]
    keypoints: tuple[str, ...]
    input: InputSpec
    normalization: str
    pixel_normalization: Normalization

    def decoder(self) -> Decoder:
        """Return the decoder configuration of the manifest."""
        fields = {
            "output_stride": self.network.output_stride,
            "top_k": self.config.top_k,
            "score_threshold": self.config.score_threshold,
            "keypoints": self.keypoints,
            "skeleton": COCO_SKELETON if self.keypoints == COCO_KEYPOINTS else (),
            "keypoint_class_ids": self._keypoint_class_ids(),
            "projection": self.config.projection,
            "pairs": self.task.pairs,
            "centers": self.task.peaks_per_heatmap,
            "rules": self.task.corner_rules,
            "peaks": self.task.peaks_per_heatmap,
            "columns": _longest_side_cells(self.input, self.network.output_stride),
            "agnostic": self.task.is_agnostic,
        }
        kind = self.task.decoder
        return kind.model_validate(
            {name: fields[name] for name in kind.model_fields if name != "kind"}
        )

    def _keypoint_class_ids(self) -> tuple[int, ...]:
        """Return the ids of the classes with keypoints; raises :class:`ConfigError`."""
        names = self.config.keypoint_classes or ()
        if unknown := [name for name in names if name not in self.classes]:
            raise ConfigError(
                f"keypoint classes: {unknown[0][:100]!r} is not one of the classes "
                f"{', '.join(self.classes)}."
            )
        return tuple(sorted({self.classes.index(name) for name in names}))

    def output_names(self) -> list[str]:
        """Return the names of the graph outputs, in order."""
        return [tensor.name for tensor in self.decoder().outputs()]

    def manifest(
        self,
        artifacts: tuple[Artifact, ...],
        checkpoint_sha256: str,
        tools: dict[str, str],
        verification: Verification,
        references: References | None = None,
    ) -> ModelManifest:
        """Build the manifest from the configuration and the results of the export."""
        return ModelManifest(
            name=self.config.name,
            version=self.config.version,
            description=self.config.description,
            classes=self.classes,
            input=self.input,
            decoder=self.decoder(),
            artifacts=artifacts,
            provenance=Provenance(
                architecture=self.network.architecture,
                checkpoint_sha256=checkpoint_sha256,
                source=self.config.source,
                license=self.config.license,
                normalization=self.normalization,
                tools=tools,
            ),
            verification=verification,
            references=references,
        )


def resolve_export(config: ExportConfig, network: NetworkInfo) -> ResolvedExport:
    """Validate ``config`` for an identified network, and resolve its defaults.

    Raises :class:`ConfigError`, and :class:`CheckpointMismatchError` if the number of names differs
    from the network's.
    """
    task = task_of_framework(network.task, network.framework)
    _check_name("precision", config.precision, get_args(ExportPrecision))
    normalization, pixel_normalization = _normalization(config, task)
    _check_size(config, task, network)
    _check_names("classes", config.classes, network.num_classes)
    _check_names("keypoints", config.keypoints, network.num_keypoints)
    if config.flip and not task.can_flip:
        raise ConfigError(f"flip averaging is not supported for the task {network.task}.")
    if config.keypoint_classes and not network.num_keypoints:
        raise ConfigError(
            "keypoint classes were given, but this network has no keypoints. Leave "
            "--keypoint-classes out."
        )
    padding_rgb = pixel_normalization.mean_rgb or (0, 0, 0)
    try:
        input_spec = _input(config, task, network.input_multiple, padding_rgb)
        resolved = ResolvedExport(
            config=config,
            network=network,
            task=_with_decoding_options(task, config, input_spec, network.output_stride),
            classes=_names("classes", config.classes, task.classes, network.num_classes),
            keypoints=_names("keypoints", config.keypoints, task.keypoints, network.num_keypoints),
            input=input_spec,
            normalization=normalization,
            pixel_normalization=pixel_normalization,
        )
        resolved.manifest(*_placeholder_results())
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        problems = "; ".join(_explain(item["loc"], item["msg"], item["input"]) for item in details)
        raise ConfigError(f"the package manifest would be invalid: {problems}.") from error
    return resolved


def _check_name(option: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise ConfigError(f"there is no {option} {name!r}. Accepted: {', '.join(known)}.")


def _normalization(config: ExportConfig, task: Task) -> tuple[str, Normalization]:
    """Return the pixel scaling, preceded by its name or description."""
    chosen = task.normalization if config.normalization is None else config.normalization
    if isinstance(chosen, Normalization):
        return chosen.describe(), chosen
    _check_name("normalization", chosen, NORMALIZATIONS)
    return chosen, NORMALIZATIONS[chosen]


def _input(
    config: ExportConfig,
    task: Task,
    multiple_px: Literal[32, 128],
    padding_rgb: tuple[int, int, int],
) -> InputSpec:
    free_size = None
    max_side_px = _max_side_px(config, task)
    if max_side_px is not None:
        free_size = FreeSize(
            multiple_px=multiple_px, extra_px=0 if task.reduction_px else 1, max_side_px=max_side_px
        )
    width_px, height_px = _size(config, task)
    return InputSpec(
        width_px=width_px,
        height_px=height_px,
        resize=config.resize or task.resize,
        free_size=free_size,
        padding_rgb=padding_rgb,
    )


def _with_decoding_options(
    task: Task, config: ExportConfig, spec: InputSpec, output_stride: int
) -> Task:
    """Set the options of the decoding of extreme points; raises :class:`ConfigError`."""
    weight = config.edge_aggregation
    if task.decoder is not ExtremePointsDecoder:
        if weight:
            raise ConfigError(
                f"edge aggregation is {weight:g}, but this network has no extreme points. Leave "
                "--edge-aggregation out."
            )
        return task
    if not 0 <= weight <= 1:
        raise ConfigError(f"edge aggregation is {weight:g}, but must be from 0 to 1.")
    decode = partial(
        decode_extreme_points,
        agnostic=task.is_agnostic,
        columns=_longest_side_cells(spec, output_stride),
        edge_aggregation=weight,
    )
    return replace(task, decode=decode)


def _longest_side_cells(spec: InputSpec, output_stride: int) -> int:
    """Return the longest side of the largest output map."""
    largest_px = spec.free_size.max_side_px if spec.free_size is not None else 0
    return max(spec.width_px, spec.height_px, largest_px) // output_stride


def _max_side_px(config: ExportConfig, task: Task) -> int | None:
    return task.max_side_px if config.max_side_px is None else config.max_side_px


def _size(config: ExportConfig, task: Task) -> tuple[int, int]:
    width_px, height_px = task.size_px
    return (
        width_px if config.width_px is None else config.width_px,
        height_px if config.height_px is None else config.height_px,
    )


def _check_size(config: ExportConfig, task: Task, network: NetworkInfo) -> None:
    multiple_px = network.input_multiple
    width_px, height_px = _size(config, task)
    size = f"{width_px}x{height_px}"
    reduction_px = task.reduction_px
    if (width_px + reduction_px) % multiple_px or (height_px + reduction_px) % multiple_px:
        raise ConfigError(
            f"the input size {size} is invalid for the network: width and height must be "
            f"{'one less than ' * reduction_px}multiples of {multiple_px}, for instance "
            f"{_nearest(width_px, multiple_px) - reduction_px}x"
            f"{_nearest(height_px, multiple_px) - reduction_px}."
        )
    max_side_px = _max_side_px(config, task)
    if max_side_px is not None and max_side_px < max(width_px, height_px):
        raise ConfigError(
            f"dynamic input sizes are limited to {max_side_px} px a side, but the default input "
            f"size is {size}. Raise the limit or choose a smaller size."
        )
    cells = width_px * height_px // network.output_stride**2
    if config.top_k > cells > 0:
        raise ConfigError(
            f"top-K is {config.top_k}, but an input of {size} has only {cells} cells in its "
            "output map. Reduce --top-k or choose a larger input."
        )


def _check_names(kind: str, names: tuple[str, ...] | None, count: int) -> None:
    if names is not None and names and len(names) != count:
        raise CheckpointMismatchError(
            f"the checkpoint detects {count} {kind}, but {len(names)} names of {kind} were given. "
            "Give the names it was trained with, in the same order."
        )


def _names(
    kind: str, names: tuple[str, ...] | None, default: tuple[str, ...], count: int
) -> tuple[str, ...]:
    if names is not None:
        return names
    if len(default) != count:
        raise ConfigError(
            f"the checkpoint detects {count} {kind}, for which there are no default names. "
            f"Give them with --{kind}."
        )
    return default


def _explain(location: tuple[int | str, ...], problem: str, received: object) -> str:
    if not location:  # concerns several fields, which the message names
        return problem
    return f"{'.'.join(str(part) for part in location)}: {problem}, not {str(received)[:80]!r}"


def _nearest(size_px: int, multiple_px: int) -> int:
    return max(multiple_px, round(size_px / multiple_px) * multiple_px)


def _placeholder_results() -> tuple[tuple[Artifact, ...], str, dict[str, str], Verification]:
    """Return placeholder results, so that the manifest's validation covers the other fields."""
    digest = "0" * 64
    artifact = OnnxArtifact(file="model.onnx", precision="fp32", sha256=digest, size_bytes=1)
    verification = Verification(
        reference="none", inputs=1, tolerances={}, worst_errors={}, matched_fraction=0.0
    )
    return (artifact,), digest, {}, verification
